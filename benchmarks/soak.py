"""Kills a training run again and again, and checks that it ends as if nothing had happened.

    python benchmarks/soak.py [--kills=20] [--seed=0] [--steps=1000] [--workdir=DIR] [--config.key=value ...]

Trains on the digits without interruption, and once more with so many kill -9s at random moments: while it starts
(imports, restores, compiles), while it trains, while it writes a checkpoint. The same command is started again after
each. At the end both runs must hold the same weights, running average and optimiser moments, and the same metrics but
for those that measure time, bit by bit. Prints a row for each kill; the exit code is 1 if anything differs. Takes about
seven minutes on two cores.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from lape_jax import cli, tasks
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.train import setup, trained

ROOT = Path(__file__).parents[1]
# A run in which everything takes part that has a state or a random number.
OPTIONS = (
    f"--config={ROOT / 'configs' / 'digits.py'}:debug",
    "--config.ema_decay=0.99",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    "--config.optimizer.clip_norm=1.0",
    "--config.steps_per_dispatch=7",
    "--config.log_steps=10",
    "--config.eval_steps=50",
    "--config.checkpoint_steps=20",
)
TIMES = {"img_per_sec", "img_per_sec_per_device", "data_wait_frac", "mfu"}


class Life:
    """One start of the command: a process that writes to `workdir`, and what it said.

    Args:
        workdir: of the run.
        options: of `python -m lape_jax.main`, beside --workdir.
        environment: variables to set, beside those of this process.
    """

    def __init__(self, workdir: Path, options: list[str], environment: Mapping[str, str] | None = None):
        self.workdir = workdir
        self._log = workdir.with_name(f"{workdir.name}.log")  # a file, because nobody empties a pipe
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lape_jax.main", f"--workdir={workdir}", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, event: Callable[[], bool], seconds: float = 600) -> None:
        """Returns as soon as `event()` is true. AssertionError if the process ends before, or takes too long."""
        end = time.monotonic() + seconds
        while not event():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f"the run ended too early, or hangs ({self.process.poll()}):\n{self.said()}")
            time.sleep(0.001)

    def wait_for_step(self, step: int) -> None:
        """Returns as soon as this life has begun and metrics.jsonl has a line of `step` or a later one."""
        self.wait_for(lambda: self.resumed_at() is not None)  # until then the lines are those of an earlier life
        self.wait_for(lambda: last_step(self.workdir) >= step)

    def freeze_in_save(self) -> None:
        """Stops the process in the middle of writing a checkpoint: the temporary directory is there, and stays."""

        def saving():
            return any((self.workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))

        while True:
            self.wait_for(saving)
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
            if saving():
                return
            self.process.send_signal(signal.SIGCONT)

    def end(self, how: signal.Signals | None = None) -> int:
        """The exit code, after sending the signal `how`."""
        if how is not None:
            self.process.send_signal(how)
        return self.process.wait(timeout=600)

    def resumed_at(self) -> int | None:
        """The step that this life began at, None if it did not come so far."""
        found = re.search(r"^(?:resuming at step (\d+) of|training for)", self.said(), re.MULTILINE)
        return int(found[1] or 0) if found else None


def last_step(workdir: Path) -> int:
    """The step of the last whole line of metrics.jsonl, -1 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=-1)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: names of arrays of the last states, and lines of metrics.jsonl."""
    found = []
    states = [final_state(workdir) for workdir in (one, other)]
    for name in sorted({*states[0], *states[1]}):
        arrays = [state.get(name) for state in states]
        if any(array is None for array in arrays) or arrays[0].tobytes() != arrays[1].tobytes():
            found.append(name)
    lines = [metrics(workdir) for workdir in (one, other)]
    found += [f"{len(run)} lines of metrics" for run in lines if len(lines[0]) != len(lines[1])]
    return found + [f"{a} against {b}" for a, b in zip(*lines, strict=False) if a != b]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint by name."""
    config = cli.load_config("", str(workdir))
    model = setup.build_model(config, len(tasks.of(config).open_split(config, "train").classes))
    mesh = sharding.make_mesh(config.mesh)
    state = trained.restore(Path(workdir), config, model, mesh, trained.LAST, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(jax.device_get(state)).items()}


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without the scalars that measure time."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def plan(kills: int, steps: int, rng: random.Random) -> list[tuple[str, float]]:
    """The moments of the kills, all of which come to pass: (kind, fraction of the start, or step to wait for)."""
    kinds = [rng.choice(("start", "step", "save")) for _ in range(kills)]
    # Steps in order: a life that waits for a step that is past already would be killed before it makes any progress.
    at = iter(sorted(rng.randrange(1, int(0.8 * steps)) for _ in range(kills)))
    return [(kind, rng.random() if kind == "start" else next(at)) for kind in kinds]


def kill(life: Life, kind: str, moment: float, start_seconds: float, rng: random.Random) -> None:
    """Kills one life at the planned moment; the first start took `start_seconds`."""
    if kind == "start":  # which may be over sooner than at the first time
        end = time.monotonic() + moment * start_seconds
        life.wait_for(lambda: time.monotonic() > end or "first step made" in life.said())
    else:
        life.wait_for_step(int(moment))
        if kind == "save":
            life.freeze_in_save()
        else:
            time.sleep(0.1 * rng.random())
    if life.end(signal.SIGKILL) != -signal.SIGKILL:
        raise AssertionError(f"the run ended before it could be killed: give more --steps\n{life.said()}")


def main(args: argparse.Namespace, overrides: list[str]) -> int:
    rng = random.Random(args.seed)
    options = [*OPTIONS, f"--config.total_steps={args.steps}", *overrides]
    whole, killed = args.workdir / "whole", args.workdir / "killed"
    for workdir in (whole, killed):
        shutil.rmtree(workdir, ignore_errors=True)
    args.workdir.mkdir(parents=True, exist_ok=True)

    begin = time.monotonic()
    life = Life(whole, options)
    life.wait_for_step(1)
    start_seconds = time.monotonic() - begin
    if life.end() != 0:
        raise SystemExit(life.said())
    print(
        f"uninterrupted: {args.steps} steps in {time.monotonic() - begin:.1f} s, the first after {start_seconds:.1f} s"
    )

    print("kill  moment           began at  last line  seconds")
    for number, (kind, moment) in enumerate(plan(args.kills, args.steps, rng), start=1):
        begin = time.monotonic()
        with Life(killed, options) as life:
            kill(life, kind, moment, start_seconds, rng)
        shown = {"start": f"start {moment:.0%}", "step": f"step {moment}", "save": f"save after {moment}"}[kind]
        resumed, last = life.resumed_at(), last_step(killed)
        print(
            f"{number:4}  {shown:15}  {'-' if resumed is None else resumed:>8}  {'-' if last < 0 else last:>9}"
            f"  {time.monotonic() - begin:7.1f}",
            flush=True,
        )
    with Life(killed, options) as life:
        if life.end() != 0:
            raise SystemExit(life.said())
    print(f"last life: began at step {life.resumed_at()}, ended at step {last_step(killed)}")

    different = differences(whole, killed)
    for line in different:
        print(f"differs: {line}")
    print("NOT THE SAME" if different else f"the same, bit by bit, after {args.kills} kills")
    return int(bool(different))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=1000, help="of the run")
    parser.add_argument("--workdir", type=Path, help="for the runs; by default a temporary directory")
    given, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        given.workdir = given.workdir or Path(temporary)
        sys.exit(main(given, rest))
