"""What LaPE costs beside the default joining: time, memory and operations, of training and of inference, as ratios.

    python benchmarks/lape_overhead.py [--model=deit_ti] [--batch=16] [--repeats=15] [--dtype=float32]

The models run in turns in the same process, so that drift of the machine cancels; a ratio is the median of those of the
turns. In inference LaPE also runs as `lape_jax.port.fold` makes it, with constants for its PE. FLOPs are XLA's count,
and memory is what the compiled program needs on one device (arguments, results and temporaries). The paper's
Table 6 (DeiT-Ti, four V100s) gives 412 / 410 = 1.005 for the time and 10822 / 10799 = 1.002 for the memory.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lape_jax import models, port
from lape_jax.augment import recipe
from lape_jax.tasks import classify
from lape_jax.train import sharding
from lape_jax.train import state as states
from lape_jax.train.config import base

PROGRAMS = {"train step": ("default", "lape"), "inference": ("default", "lape", "folded")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_ti")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(
        f"{args.model}, batch {args.batch}, {args.dtype}, {device}, jax {jax.__version__}: beside the default joining"
    )
    for name, joins in PROGRAMS.items():
        build = train_step if name == "train step" else inference
        compiled, calls = zip(*(build(join, args) for join in joins), strict=True)
        seconds = in_turns(calls, args.repeats)
        for join, program, times in list(zip(joins, compiled, seconds, strict=True))[1:]:
            report(f"{name}, {join}", compiled[0], seconds[0], program, times)


def in_turns(calls, repeats):
    """Seconds of each call in each turn, after one turn that does not count; every second turn runs backwards."""
    for call in calls:
        call()
    seconds = [[] for _ in calls]
    for turn in range(repeats):
        for index in range(len(calls))[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            calls[index]()
            seconds[index].append(time.perf_counter() - begin)
    return seconds


def report(name, default, default_seconds, program, seconds):
    ratios = [own / base for base, own in zip(default_seconds, seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    memory, needed = peak_bytes(default), peak_bytes(program)
    flops = program.cost_analysis()["flops"] / default.cost_analysis()["flops"]
    print(
        f"{name:18}  time {statistics.median(ratios):.3f}x (quartiles {low:.3f} to {high:.3f}; "
        f"{1e3 * statistics.median(default_seconds):.0f} -> {1e3 * statistics.median(seconds):.0f} ms)"
        f"  FLOPs {flops:.5f}x  memory {needed / memory:.4f}x ({memory / 2**20:.1f} -> {needed / 2**20:.1f} MiB)",
        flush=True,
    )


def build_model(join, args):
    return models.create(args.model, join=join, dtype=jnp.dtype(args.dtype))


def config_of(model):
    """No augmentation but normalisation."""
    config = base()
    config.data.image_size, _, config.data.channels = model.input_shape
    return config


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
    augment = recipe.make(config_of(model), num_classes=model.num_classes, mesh=sharding.make_mesh(base().mesh))
    update = states.update_function(
        classify.training_loss(model),
        tx,
        lambda batch, key, step: augment(batch, key, step >= 0),
        seed=0,
        accumulate=1,
        ema_decay=0,
    )
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
    model = build_model("lape" if join == "folded" else join, args)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    if join == "folded":
        model, variables = port.fold(variables, model)
    batch = batch_of(model, args.batch)
    compiled = jax.jit(classify.evaluation_sums(model, config_of(model))).lower(variables, batch).compile()
    return compiled, lambda: jax.block_until_ready(compiled(variables, batch))


def peak_bytes(compiled):
    used = compiled.memory_analysis()
    both = used.argument_size_in_bytes + used.output_size_in_bytes
    return both - used.alias_size_in_bytes + used.temp_size_in_bytes


if __name__ == "__main__":
    main()
