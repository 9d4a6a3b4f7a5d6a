"""A train step of UperNet on ViT-Adapter-Ti beside the tests' PyTorch model: seconds, on this machine, in one run.

    pip install -r requirements.txt -e ".[peer]"
    python benchmarks/upernet_step.py [--size=512] [--batch=2] [--turns=3]

A step is forward, both losses, backward and AdamW on one batch that lies on the device, in float32; nothing is decoded
or augmented, and nothing is dropped. PyTorch's model is that of tests/reference, which is written for clarity, with
`grid_sample` in the deformable attentions. All start from the same weights (LaPE's from those with PE norms), and the
first losses are compared before anything is timed. All take turns; the table has medians and quartiles.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the tests' model

from lape_jax import cli, port, tasks  # noqa: E402
from lape_jax.parallel import sharding  # noqa: E402
from lape_jax.train import optim, setup  # noqa: E402
from lape_jax.train import state as states  # noqa: E402
from tests.reference import torch_upernet  # noqa: E402
from tests.reference.torch_deformable import Deformable, sample_by_grid  # noqa: E402

CONFIG = ROOT / "configs" / "upernet_vit_adapter_ti_ade20k.py"
CLASSES, RATE = 150, 1e-4
FIXED = ("running_mean", "running_var", "num_batches_tracked")


def peer(weights: Mapping[str, np.ndarray], images: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    """A step of PyTorch's model, which returns its loss."""
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    learned = [tensor.requires_grad_() for name, tensor in state.items() if not name.endswith(FIXED)]
    optimizer = torch.optim.AdamW(learned, lr=RATE)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(np.where(labels < 0, torch_upernet.IGNORED, labels)).long()
    options = {"depth": 12, "heads": 3, "train": True, "attend": Deformable(sample=sample_by_grid)}

    def step() -> float:
        _, masks, aux = torch_upernet.upernet(state, pixels, **options)
        loss, _, _ = torch_upernet.losses(masks, aux, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def ours(size: int, join: str, images: np.ndarray, labels: np.ndarray) -> tuple[Callable[[], float], dict]:
    """A step of the config with this joining, which returns its loss, and the weights it starts from."""
    count = len(images)
    rates = [("model.drop_path", "0.0"), ("model.head_dropout", "0.0"), ("dtype", "float32")]
    sizes = [("data.image_size", str(size)), ("segment.stride", str(min(341, size)))]
    config = cli.load_config(f"{CONFIG}:source=tfds,join={join},batch={count}", "", [*rates, *sizes])
    model, mesh = setup.build_model(config, CLASSES), sharding.make_mesh(config.mesh)
    tx = optim.make(config.optimizer, model.param_shapes(), lambda step: RATE, model.no_weight_decay)
    state = jax.jit(states.initialiser(model, tx, ema=False, task=tasks.of(config)))(jax.random.key(0))
    weights = port.to_torch(jax.device_get(state.variables), model)
    # The images are normalised already, as PyTorch gets them: the augmentation would do just that.
    update = states.update_function(
        tasks.of(config).loss(config, model), tx, lambda batch, key, step: batch, seed=0, accumulate=1, ema_decay=0.0
    )
    update = jax.jit(update, donate_argnums=0)
    batch = {"image": images, "label": labels, "mask": np.ones(count, np.float32)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh, count))
    before = 0.0

    def step() -> float:
        nonlocal state, before
        state = jax.block_until_ready(update(state, batch))
        before, last = float(state.sums["loss"]), before
        return (before - last) / labels.size

    return step, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    images = rng.standard_normal((args.batch, args.size, args.size, 3), np.float32)
    labels = rng.integers(-1, CLASSES, images.shape[:3], np.int32)
    default, weights = ours(args.size, "default", images, labels)
    steps = {
        "PyTorch, default joining": peer(weights, images, labels),
        "lape_jax, default joining": default,
        "lape_jax, LaPE": ours(args.size, "lape", images, labels)[0],
    }
    first = {name: step() for name, step in steps.items()}  # compiles
    theirs, same, _ = first.values()
    if abs(theirs - same) > 1e-3 * theirs:
        raise SystemExit(f"the first losses differ: {first}")
    seconds = {name: [] for name in steps}
    for _ in range(args.turns):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    device = jax.devices()[0].device_kind
    print(f"UperNet on ViT-Adapter-Ti, {args.size} x {args.size}, batch {args.batch}, float32, {device}")
    print(f"jax {jax.__version__}, torch {torch.__version__}, {args.turns} turns\n")
    print("| | first loss | seconds, median (quartiles) | speed |\n|---|---|---|---|")
    slowest = statistics.median(seconds["PyTorch, default joining"])
    for name, found in seconds.items():
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        print(f"| {name} | {first[name]:.5f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {slowest / middle:.2f}x |")


if __name__ == "__main__":
    main()
