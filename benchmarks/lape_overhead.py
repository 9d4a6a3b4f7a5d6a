"""What LaPE costs beside the default joining: time and memory of a train step and of inference, as ratios.

    python benchmarks/lape_overhead.py [--model=deit_ti] [--batch=16] [--repeats=15] [--dtype=float32]

Both models run in turns in the same process, so that drift of the machine cancels; a ratio is the median of those of
the turns. Memory is what the compiled program needs on one device (arguments, results and temporaries). The paper's
Table 6 (DeiT-Ti, four V100s) gives 412 / 410 = 1.005 for the time and 10822 / 10799 = 1.002 for the memory.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lape_jax import models
from lape_jax.tasks import classify
from lape_jax.train import state as states
from lape_jax.train.config import base

JOINS = ("default", "lape")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_ti")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"{args.model}, batch {args.batch}, {args.dtype}, {device}, jax {jax.__version__}: lape / default")
    for name, build in (("train step", train_step), ("inference", inference)):
        programs = {join: build(join, args) for join in JOINS}
        for _, call in programs.values():
            call()
        seconds = {join: [] for join in JOINS}
        for turn in range(args.repeats):
            for join in JOINS if turn % 2 else JOINS[::-1]:
                begin = time.perf_counter()
                programs[join][1]()
                seconds[join].append(time.perf_counter() - begin)
        ratios = [lape / default for default, lape in zip(seconds["default"], seconds["lape"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        memory = {join: peak_bytes(programs[join][0]) for join in JOINS}
        print(
            f"{name:10}  time {statistics.median(ratios):.3f}x (quartiles {low:.3f} to {high:.3f}; "
            f"{1e3 * statistics.median(seconds['default']):.0f} -> {1e3 * statistics.median(seconds['lape']):.0f} ms)"
            f"  memory {memory['lape'] / memory['default']:.4f}x "
            f"({memory['default'] / 2**20:.1f} -> {memory['lape'] / 2**20:.1f} MiB)",
            flush=True,
        )


def build_model(join, args):
    return models.create(args.model, join=join, dtype=jnp.dtype(args.dtype))


def batch_of(model, size):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, *model.input_shape), np.uint8)),
        "label": jnp.asarray(rng.integers(0, model.num_classes, size), jnp.int32),
        "mask": jnp.ones(size),
    }


def train_step(join, args):
    """The compiled train step, as training runs it, and a call of it that waits for the result."""
    model = build_model(join, args)
    tx = optax.adamw(1e-3)
    update = states.update_function(classify.training_loss(model, base()), tx, seed=0, accumulate=1, ema_decay=0)
    state = jax.jit(states.initialiser(model, tx, ema=False))(jax.random.key(0))
    batch = batch_of(model, args.batch)
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()

    def call():
        nonlocal state
        state = compiled(state, batch)
        jax.block_until_ready(state)

    return compiled, call


def inference(join, args):
    """The compiled forward pass on uint8 images, and a call of it that waits for the result."""
    model = build_model(join, args)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))["params"]
    batch = batch_of(model, args.batch)
    compiled = jax.jit(classify.evaluation_sums(model, base())).lower(params, batch).compile()
    return compiled, lambda: jax.block_until_ready(compiled(params, batch))


def peak_bytes(compiled):
    used = compiled.memory_analysis()
    both = used.argument_size_in_bytes + used.output_size_in_bytes
    return both - used.alias_size_in_bytes + used.temp_size_in_bytes


if __name__ == "__main__":
    main()
