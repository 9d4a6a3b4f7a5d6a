"""Training speed of Seg-Ti-Mask beside the same model in PyTorch: images a second, on this machine, in one run.

    pip install -r requirements.txt -e ".[peer]"
    python benchmarks/segmenter.py [--size=512] [--batch=2] [--turns=5] [--dtype=float32] [--remat=none]

A step is forward, backward and SGD on one batch that lies on the device; nothing is decoded or augmented. PyTorch's
model is written here from Segmenter's formulas with `scaled_dot_product_attention`, the default joining, no remat and
no stochastic depth; on a GPU it is compiled (`torch.compile`) and runs in bfloat16 under autocast where
--dtype=bfloat16. Ours is the step that `lape_jax.main` makes of the config, default and LaPE. All take turns; the table
has medians and quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lape_jax import cli, tasks
from lape_jax.parallel import sharding
from lape_jax.train import optim, setup
from lape_jax.train import state as states

CONFIG = Path(__file__).parents[1] / "configs" / "segmenter_ti_mask_ade20k.py"
CLASSES, PATCH = 150, 16


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Segmenter(nn.Module):
    """ViT, two blocks with class tokens, cosines; logits of the patches."""

    def __init__(self, size: int, width: int = 192, heads: int = 3, depth: int = 12):
        super().__init__()
        self.grid = size // PATCH
        self.patch_embed = nn.Conv2d(3, width, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.proj_dec = nn.LayerNorm(width, 1e-6), nn.Linear(width, width)
        self.cls_emb = nn.Parameter(0.02 * torch.randn(1, CLASSES, width))
        self.decoder = nn.Sequential(*(Block(width, heads) for _ in range(2)), nn.LayerNorm(width))
        self.proj_patch, self.proj_classes = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.mask_norm = nn.LayerNorm(CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.proj_dec(self.norm(self.blocks(x))[:, 1:])
        x = self.decoder(torch.cat([x, self.cls_emb.expand(len(x), -1, -1)], 1))
        patches, classes = self.proj_patch(x[:, :-CLASSES]), self.proj_classes(x[:, -CLASSES:])
        masks = self.mask_norm(F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT)
        return masks.mT.unflatten(2, (self.grid, self.grid))


def peer(args: argparse.Namespace, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """A step of PyTorch's model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    model = Segmenter(args.size).to(device)
    forward = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(labels).long().to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            masks = forward(images)
        logits = F.interpolate(masks.float(), size=(args.size, args.size), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels, ignore_index=-1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def ours(args: argparse.Namespace, join: str, labels: np.ndarray) -> Callable[[], None]:
    """A step of the config with this joining."""
    overrides = [("dtype", args.dtype), ("model.remat", args.remat), ("data.image_size", str(args.size))]
    arg = f"source=tfds,join={join},batch={args.batch}"
    config = cli.load_config(f"{CONFIG}:{arg}", "", [*overrides, ("segment.stride", str(min(480, args.size)))])
    model, mesh = setup.build_model(config, CLASSES), sharding.make_mesh(config.mesh)
    tx = optim.make(config.optimizer, model.param_shapes(), lambda step: 1e-3, model.no_weight_decay)
    init = states.initialiser(model, tx, ema=False, task=tasks.of(config))
    state = jax.jit(init)(jax.random.key(0))
    update = jax.jit(setup.update(config, model, 0, tx, mesh), donate_argnums=0)
    shape = (args.batch, args.size, args.size, 3)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        "label": labels,
        "mask": np.ones(args.batch, np.float32),
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh, args.batch))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(update(state, batch))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="none")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    images = rng.standard_normal((args.batch, args.size, args.size, 3), np.float32)
    labels = rng.integers(-1, CLASSES, images.shape[:3], np.int32)
    steps = {
        "PyTorch, default joining": peer(args, images, labels),
        "lape_jax, default joining": ours(args, "default", labels),
        "lape_jax, LaPE": ours(args, "lape", labels),
    }
    for step in steps.values():
        step()  # compiles
    rates = {name: [] for name in steps}
    for _ in range(args.turns):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            rates[name].append(args.batch / (time.perf_counter() - begin))
    device = jax.devices()[0].device_kind
    print(
        f"Seg-Ti-Mask at {args.size} x {args.size}, batch {args.batch}, {args.dtype}, {device}, jax {jax.__version__}"
    )
    print(f"torch {torch.__version__}, {args.turns} turns; remat={args.remat}\n")
    print("| | images/s, median (quartiles) | ratio |\n|---|---|---|")
    first = statistics.median(rates["PyTorch, default joining"])
    for name, found in rates.items():
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        print(f"| {name} | {middle:.3g} ({low:.3g} to {high:.3g}) | {middle / first:.2f}x |")


if __name__ == "__main__":
    main()
