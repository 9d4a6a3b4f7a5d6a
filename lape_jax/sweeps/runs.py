"""The runs of a sweep: which are missing, and how they are trained."""

import dataclasses
import functools
import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lape_jax import atomic, tasks
from lape_jax.errors import UserError
from lape_jax.sweeps import seeds as together
from lape_jax.sweeps.grid import Cell
from lape_jax.train import plan as plans
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.loop import train_and_evaluate
from lape_jax.train.signals import StopRequest
from lape_jax.train.writers import Console, clock_time


@dataclasses.dataclass
class Job:
    """A cell, and what its seeds have come to so far."""

    cell: Cell
    config: ConfigDict
    directory: Path
    seeds: Sequence[int]  # that are wanted
    known: dict[int, dict]  # of these and other seeds: metrics, or {"error": why there are none}
    speed: str = ""  # of what was trained here and now

    @property
    def results(self) -> dict[int, dict]:
        """What is known of the seeds that are wanted."""
        return {seed: self.known[seed] for seed in self.seeds if seed in self.known}

    @property
    def missing(self) -> list[int]:
        """The wanted seeds that have no metrics."""
        return self.without_metrics(self.seeds)

    def without_metrics(self, seeds: Sequence[int]) -> list[int]:
        """Those of the seeds that have no metrics."""
        return [seed for seed in seeds if "error" in self.known.get(seed, {"error": ""})]

    def groups(self) -> list[list[int]]:
        """Seeds that train together: those that have begun to, wanted or not, and all others that are missing."""
        begun = together.begun(self.directory)
        if not self.without_metrics(begun):  # none, or the end came just after their results were saved
            together.discard(self.directory)
            begun = []
        return [group for group in (begun, [seed for seed in self.missing if seed not in begun]) if group]

    def save(self) -> None:
        """Writes what is known, all or nothing."""
        content = {"config": _identity(self.config), "seeds": self.known}
        atomic.write(self.directory / "results.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def prepare(cells: Sequence[tuple[Cell, ConfigDict]], seeds: Sequence[int], out: Path) -> list[Job]:
    """A job for each cell, with the results that `out` has already.

    Raises:
        UserError: two cells are the same, `out` has results of another config under the name of a cell, or it cannot be
            read or made.
    """
    directories = [out / _file_name(f"{cell.row} {cell.column}") for cell, _ in cells]
    identities = [_identity(config) for _, config in cells]
    for i, j in itertools.combinations(range(len(cells)), 2):
        names = f"cells {cells[i][0]} and {cells[j][0]}"
        if directories[i] == directories[j]:
            raise UserError(f"{names} would both be {directories[i]}: call them less alike")
        if identities[i] == identities[j]:
            raise UserError(f"{names} have the same config: leave out one, or the option that undoes their difference")
    jobs = [
        Job(cell, config, directory, seeds, _read(directory, config))
        for (cell, config), directory in zip(cells, directories, strict=True)
    ]
    try:
        for job in jobs:
            job.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be written: {error.strerror}") from None
    return jobs


def train(job: Job, console: Console, stop: StopRequest) -> bool:
    """Trains the missing seeds of a cell and saves their results; whatever goes wrong is a result, too.

    Seeds that were interrupted as they trained together end together, whether all of them are wanted or not.

    Args:
        job: the cell; what is known of it grows.
        console: for progress.
        stop: asked between one training and the next.

    Returns:
        False if a signal ended it before its time.

    Raises:
        KeyboardInterrupt: Ctrl-C in a training.
    """
    begin, trained = time.perf_counter(), 0
    job.save()  # so that from here on no other config is trained here
    reason = together.why_not(job.config)
    if reason:
        console.line(f"one after another: {reason}")
        groups = [[seed] for seed in job.missing]
        run = functools.partial(_alone, job)
    else:
        groups = job.groups()
        run = functools.partial(_together, job, console)
    for group in groups:
        if stop.due():
            return False
        results = _tried(functools.partial(run, group))
        if results is None:
            return False
        failed = "error" in results
        job.known |= dict.fromkeys(job.without_metrics(group), results) if failed else results
        job.save()
        if not failed:
            together.discard(job.directory)
        trained += len(group)
    job.speed = f"{clock_time(time.perf_counter() - begin)} for {trained} seed{'s' if trained > 1 else ''}"
    jax.clear_caches()  # the programs of a cell are of no use to the next
    return True


def _together(job: Job, console: Console, seeds: Sequence[int]) -> dict[int, dict] | None:
    """The results of seeds that train together; None if they were stopped."""
    if any(seed not in job.missing for seed in seeds):
        console.line(f"first to its end what has begun together: seeds {', '.join(map(str, seeds))}")
    return together.train(job.config, seeds, job.directory, console)


def _alone(job: Job, seeds: Sequence[int]) -> dict[int, dict] | None:
    """The results of one seed, a run of the ordinary kind; None if it was stopped."""
    (seed,) = seeds
    config = job.config.copy_and_resolve_references()
    config.seed = seed
    workdir = together.seed_dir(job.directory, seed)
    results = train_and_evaluate(config, workdir)
    total = plans.make(config, len(tasks.of(config).open_split(config, "train"))).total
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return {seed: results} if total in checkpoints.steps() else None


def _tried(run: Callable[[], dict | None]) -> dict | None:
    """What `run` returns, or {"error": what ended it}."""
    try:
        return run()
    except UserError as error:
        return {"error": " ".join(str(error).split())}
    except Exception as error:  # of one cell: the others have a right to be trained
        traceback.print_exception(error, file=sys.stderr)
        first_line = str(error).partition("\n")[0]
        return {"error": f"{type(error).__name__}{': ' if first_line else ''}{first_line}"}


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _read(directory: Path, config: ConfigDict) -> dict[int, dict]:
    """What is known of a cell."""
    path = directory / "results.json"
    together.begun(directory)  # which must be readable, too
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        before, known = content["config"], {int(seed): dict(metrics) for seed, metrics in content["seeds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{str(path)!r} cannot be read as results: use another --out, or remove the cell") from None
    if before != _identity(config):
        raise UserError(
            f"{str(directory)!r} holds runs of another config than this sweep's: use another --out, or remove the cell"
        )
    return known


def _identity(config: ConfigDict) -> dict:
    """The config as JSON gives it back, without what differs between runs of a cell."""
    values = {name: value for name, value in config.to_dict().items() if name not in ("seed", "distributed")}
    return json.loads(json.dumps(values))
