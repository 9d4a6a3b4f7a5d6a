"""DeiT-Ti on this machine's CPU beside PyTorch: images a second of training and inference, and ms by operation.

    pip install -r requirements.txt -e ".[peer]" && pip install timm
    python benchmarks/cpu_step.py [--batch=16] [--turns=9] [--set model.unroll=12 ...] [--operations]

PyTorch's model is timm's `deit_tiny_patch16_224`, or where timm is not installed or cannot be imported that of
tests/reference, which is written for clarity. A train step is forward, cross entropy, backward and AdamW on one batch
of 224 x 224 pixels that is normalised already, in float32; nothing is augmented or dropped. Both start from the same
weights, and the first losses are compared before anything is timed. All take turns in one process: the table has
medians and quartiles over the turns, and as speed the median of the turns' ratios. --set changes keys of the config.
--operations times the parts of a block, too, each in the sizes it has there, forward and with its gradients.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the tests' model

from lape_jax import cli, port, tasks  # noqa: E402
from lape_jax.nn.attention import Attention  # noqa: E402
from lape_jax.nn.layers import GELUS, Mlp, layer_norm  # noqa: E402
from lape_jax.parallel import sharding  # noqa: E402
from lape_jax.train import optim, setup  # noqa: E402
from lape_jax.train import state as states  # noqa: E402

CONFIG = ROOT / "configs" / "deit_ti.py"
CLASSES, RATE, DECAY = 1000, 1e-4, 0.05
TOKENS, WIDTH, HEADS, HIDDEN = 197, 192, 3, 768
BARE = [("model.drop_path", "0.0"), ("dtype", "float32")]
Steps = dict[str, Callable[[], Any]]


# ---- The models ------------------------------------------------------------------------------------------------------


def their_model() -> tuple[str, torch.nn.Module]:
    """timm's model, or else the tests'."""
    torch.manual_seed(0)
    try:
        import timm
    except (ImportError, RuntimeError):  # the latter where torchvision was built for another torch
        threads = torch.get_num_threads()
        from tests.reference import torch_vit
        from tests.reference.cases import Case

        torch.set_num_threads(threads)  # the tests have set it to 1
        sizes = {"image": (224, 224), "patch": (16, 16), "width": WIDTH, "depth": 12, "heads": HEADS}
        model = torch_vit.ViT(Case(join="default", classes=CLASSES, **sizes)).float()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return "tests/reference", model
    return f"timm {timm.__version__}", timm.create_model("deit_tiny_patch16_224", pretrained=False)


def theirs(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[Callable, Callable]:
    """Train step and inference of PyTorch's model; the step returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    pixels = torch.from_numpy(images)
    if not hasattr(model, "case"):  # the tests' takes pixels as ours does
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(labels).long()

    def logits() -> torch.Tensor:
        found = model(pixels)
        return found["logits"] if isinstance(found, dict) else found

    def train() -> float:
        loss = F.cross_entropy(logits(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return logits()

    return train, infer


def ours(
    join: str, settings: Sequence[tuple[str, str]], weights: Mapping[str, np.ndarray], images: np.ndarray, labels: Any
) -> tuple[Callable, Callable]:
    """The same of the config with this joining, from the same weights where they fit."""
    count = len(images)
    config = cli.load_config(f"{CONFIG}:source=tfds,join={join},batch={count}", "", [*BARE, *settings])
    model, mesh = setup.build_model(config, CLASSES), sharding.make_mesh(config.mesh)
    tx = optim.make(config.optimizer, model.param_shapes(), lambda step: RATE, model.no_weight_decay)
    state = jax.jit(states.initialiser(model, tx, ema=False, task=tasks.of(config)))(jax.random.key(0))
    if join == "default":
        state = state.replace(params=jax.tree.map(jnp.asarray, port.from_torch(weights, model)["params"]))
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    batch = {"image": images, "label": labels, "target": targets, "mask": np.ones(count, np.float32)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh, count))
    update = states.update_function(
        tasks.of(config).loss(config, model), tx, lambda batch, key, step: batch, seed=0, accumulate=1, ema_decay=0.0
    )
    update = jax.jit(update, donate_argnums=0)
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])
    variables = jax.tree.map(jnp.copy, state.variables)
    before = 0.0

    def train() -> float:
        nonlocal state, before
        state = jax.block_until_ready(update(state, batch))
        before, last = float(state.sums["loss"]), before
        return (before - last) / count

    def infer() -> np.ndarray:
        return jax.block_until_ready(apply(variables, batch["image"]))

    return train, infer


# ---- The parts of a block --------------------------------------------------------------------------------------------


def operations(batch: int) -> dict[str, tuple[Steps, Steps]]:
    """Of each part of a block PyTorch's and ours, forward and with gradients."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, TOKENS, WIDTH), np.float32)
    hidden = rng.standard_normal((batch, TOKENS, HIDDEN), np.float32)
    linear = torch.nn.Linear
    parts = {
        "GELU": (hidden, torch.nn.GELU(), GELUS["erf"]),
        "fc1": (x, linear(WIDTH, HIDDEN), flax.linen.Dense(HIDDEN)),
        "LayerNorm": (x, torch.nn.LayerNorm(WIDTH, 1e-6), layer_norm(1e-6, jnp.float32, "norm")),
        "attention": (x, TheirAttention(), Attention(HEADS)),
        "MLP": (
            x,
            torch.nn.Sequential(linear(WIDTH, HIDDEN), torch.nn.GELU(), linear(HIDDEN, WIDTH)),
            Mlp(HIDDEN),
        ),
    }
    return {name: (of_torch(inputs, peer), of_jax(inputs, own)) for name, (inputs, peer, own) in parts.items()}


class TheirAttention(torch.nn.Module):
    """Attention with its projections, as timm has it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def of_torch(inputs: np.ndarray, part: torch.nn.Module) -> Steps:
    x = torch.from_numpy(inputs).requires_grad_()
    cotangent = torch.ones_like(part(x))

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return part(x)

    def both() -> tuple:
        return torch.autograd.grad(part(x), [x, *part.parameters()], cotangent)

    return {"forward": forward, "with gradients": both}


def of_jax(inputs: np.ndarray, part: Any) -> Steps:
    if isinstance(part, flax.linen.Module):
        options = {"train": False} if isinstance(part, Attention | Mlp) else {}
        params = jax.jit(lambda: part.init(jax.random.key(0), jnp.asarray(inputs), **options))()

        def apply(params, x):
            return part.apply(params, x, **options)

    else:
        params = {}

        def apply(params, x):
            return part(x)

    x = jnp.asarray(inputs)
    cotangent = jnp.ones_like(apply(params, x))

    def gradients(params, x, cotangent):
        value, pull = jax.vjp(apply, params, x)
        return value, pull(cotangent)

    forward, both = jax.jit(apply), jax.jit(gradients)
    return {
        "forward": lambda: jax.block_until_ready(forward(params, x)),
        "with gradients": lambda: jax.block_until_ready(both(params, x, cotangent)),
    }


# ---- Time ------------------------------------------------------------------------------------------------------------


def in_turns(steps: Steps, turns: int) -> dict[str, list[float]]:
    """Seconds of each step in each turn; the first one, which compiles, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(turns):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast ours is: the median over the turns."""
    return statistics.median(their / own for their, own in zip(theirs, ours, strict=True))


def quartiles(values: Sequence[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def step_table(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((args.batch, 224, 224, 3), np.float32)
    labels = rng.integers(0, CLASSES, args.batch, np.int32)
    peer, model = their_model()
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    settings = [tuple(setting.split("=", 1)) for setting in args.set]
    default = ours("default", settings, weights, images, labels)
    lape = ours("lape", settings, weights, images, labels)
    found = {peer: theirs(model, images, labels), "lape_jax, default": default, "lape_jax, LaPE": lape}
    first = {name: train() for name, (train, _) in found.items()}
    if abs(first[peer] - first["lape_jax, default"]) > 1e-3 * first[peer]:
        raise SystemExit(f"the first losses differ: {first}")
    print("| | training, images/s | speed | inference, images/s | speed |\n|---|---|---|---|---|")
    seconds = [in_turns({name: pair[what] for name, pair in found.items()}, args.turns) for what in (0, 1)]
    for name in found:
        cells = []
        for times in seconds:
            cells.append(quartiles([args.batch / second for second in times[name]], ".1f"))
            cells.append(f"{ratio(times[peer], times[name]):.2f}x")
        print(f"| {' | '.join([name, *cells])} |")


def operation_table(args: argparse.Namespace) -> None:
    print("\n| ms | forward, PyTorch | ours | speed | with gradients, PyTorch | ours | speed |")
    print("|---|---|---|---|---|---|---|")
    for name, (peer, own) in operations(args.batch).items():
        cells = []
        for what in peer:
            times = in_turns({"theirs": peer[what], "ours": own[what]}, 10 * args.turns)
            cells += [f"{1000 * statistics.median(values):.1f}" for values in times.values()]
            cells.append(f"{ratio(times['theirs'], times['ours']):.2f}x")
        print(f"| {' | '.join([name, *cells])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--operations", action="store_true")
    args = parser.parse_args()
    if jax.default_backend() != "cpu":
        sys.exit("JAX has an accelerator here: JAX_PLATFORMS=cpu keeps it to the CPU")
    print(f"DeiT-Ti, batch {args.batch}, float32, {torch.get_num_threads()} threads of PyTorch")
    print(f"jax {jax.__version__}, torch {torch.__version__}, {args.turns} turns; {' '.join(args.set)}\n", flush=True)
    step_table(args)
    if args.operations:
        operation_table(args)


if __name__ == "__main__":
    main()
