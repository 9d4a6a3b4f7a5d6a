"""What is gained by training seeds together: seconds and images per second, beside training them one after another.

    python benchmarks/seeds.py [--config=configs/digits.py] [--seeds=5] [--epochs=10]

All runs are made by this process, in a temporary directory: first all seeds together, then each by itself
(`train_and_evaluate`, without its report) after JAX's caches have been cleared, since the process of its own that it
would have would compile, too. Starting Python and importing JAX, as that process would, is not counted. "whole" is
everything from the config to the last checkpoint; "steady" are the training steps but for the first dispatch, which
compiles.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax

from lape_jax import cli
from lape_jax.sweeps import seeds
from lape_jax.train import feed
from lape_jax.train.loop import train_and_evaluate
from lape_jax.train.writers import Console


class Clock(feed.Resident):
    """Counts steps and seconds of all but the first dispatch of a run."""

    steps, seconds = 0, 0.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._compiled = False

    def run(self, state, step, count):
        begin = time.perf_counter()
        state = jax.block_until_ready(super().run(state, step, count))
        if self._compiled:
            Clock.steps += count
            Clock.seconds += time.perf_counter() - begin
        self._compiled = True
        return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=10.0)
    args = parser.parse_args()
    config = cli.load_config(args.config, "", [("total_epochs", str(args.epochs)), ("report", "false")])
    if reason := seeds.why_not(config):
        parser.error(f"seeds of {args.config} cannot train together: {reason}")
    device = jax.devices()[0].device_kind
    print(f"{args.config}, {args.seeds} seeds, {args.epochs:g} epochs, {device}, jax {jax.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as out, mock.patch.object(feed, "Resident", Clock):
        together = measure(
            "together",
            args.seeds * config.batch_size,
            lambda: train_together(config, args.seeds, Path(out) / "together"),
        )
        alone = measure("one by one", config.batch_size, lambda: train_alone(config, args.seeds, Path(out)))
    print(f"gain         whole {alone[0] / together[0]:6.2f}x  steady {together[1] / alone[1]:9.2f}x")


def measure(name: str, images: int, train: Callable[[], None]) -> tuple[float, float]:
    """Seconds of `train`, and images per second of its steps, of so many images each."""
    Clock.steps, Clock.seconds = 0, 0.0
    begin = time.perf_counter()
    train()
    seconds, speed = time.perf_counter() - begin, images * Clock.steps / Clock.seconds
    print(f"{name:12} whole {seconds:6.1f} s  steady {speed:8,.0f} img/s", flush=True)
    return seconds, speed


def train_together(config, count, directory):
    jax.clear_caches()
    seeds.train(config, range(count), directory, Console(enabled=False))


def train_alone(config, count, directory):
    for seed in range(count):
        jax.clear_caches()
        config.seed = seed
        with contextlib.redirect_stdout(io.StringIO()):
            train_and_evaluate(config, directory / f"alone_{seed}")


if __name__ == "__main__":
    main()
