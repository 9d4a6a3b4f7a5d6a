"""The runs of a sweep: which are missing, and how they are trained."""

import dataclasses
import json
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.train import plan as plans
from lape_jax.train import seeds as together
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.loop import train_and_evaluate
from lape_jax.train.sweeps import Cell
from lape_jax.train.writers import Console, clock_time


@dataclasses.dataclass
class Job:
    """The seeds of a cell, and what they have come to so far."""

    cell: Cell
    config: ConfigDict
    directory: Path
    seeds: Sequence[int]
    results: dict[int, dict]  # seed -> metrics, or {"error": why there are none}
    speed: str = ""  # of what was trained here and now

    @property
    def missing(self) -> list[int]:
        """Seeds that have no metrics."""
        return [seed for seed in self.seeds if "error" in self.results.get(seed, {"error": ""})]

    def save(self) -> None:
        """Writes the results, all or nothing."""
        content = {"config": _identity(self.config), "seeds": self.results}
        partial = self.directory / "results.json.partial"
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        partial.replace(self.directory / "results.json")


def prepare(cells: Sequence[tuple[Cell, ConfigDict]], seeds: Sequence[int], out: Path) -> list[Job]:
    """A job for each cell, with the results that `out` has already.

    Raises:
        UserError: `out` has results of another config under the name of a cell, or cannot be read or made.
    """
    jobs = []
    for cell, config in cells:
        directory = out / re.sub(r"[^a-z0-9]+", "_", f"{cell.row}-{cell.column}".lower()).strip("_")
        if directory in [job.directory for job in jobs]:
            raise UserError(f"two cells of the sweep would both be {directory}: their rows and columns are too alike")
        jobs.append(Job(cell, config, directory, seeds, _read(directory, config, seeds)))
    try:
        for job in jobs:
            job.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be written: {error.strerror}") from None
    return jobs


def train(job: Job, console: Console) -> bool:
    """Trains the missing seeds of a cell and saves their results; whatever goes wrong is a result, too.

    Returns:
        False if SIGTERM ended it before its time.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    missing, begin = job.missing, time.perf_counter()
    if together.why_not(job.config):
        for seed in missing:
            results = _tried(lambda seed=seed: _alone(job, seed))
            if results is None:
                return False
            job.results[seed] = results
            job.save()
    else:
        results = _tried(lambda: together.train(job.config, missing, job.directory, console))
        if results is None:
            return False
        job.results |= dict.fromkeys(missing, results) if "error" in results else results
        job.save()
    job.speed = f"{clock_time(time.perf_counter() - begin)} for {len(missing)} seeds"
    jax.clear_caches()  # the programs of a cell are of no use to the next
    return True


def _tried(run) -> dict | None:
    """What `run` returns, or {"error": what ended it}."""
    try:
        return run()
    except UserError as error:
        return {"error": " ".join(str(error).split())}
    except Exception as error:  # of one cell: the others have a right to be trained
        traceback.print_exception(error, file=sys.stderr)
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def _alone(job: Job, seed: int) -> dict | None:
    """One run of the ordinary kind; None if it was stopped."""
    config = job.config.copy_and_resolve_references()
    config.seed = seed
    workdir = together.seed_dir(job.directory, seed)
    results = train_and_evaluate(config, workdir)
    total = plans.make(config, len(sources.open_split(config.data, "train"))).total
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return results if total in checkpoints.steps() else None


def _read(directory: Path, config: ConfigDict, seeds: Sequence[int]) -> dict[int, dict]:
    path = directory / "results.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        before, results = content["config"], {int(seed): metrics for seed, metrics in content["seeds"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{str(path)!r} cannot be read as results: remove it, or use another --out") from None
    if before != _identity(config):
        raise UserError(f"{str(path)!r} holds results of another config than this sweep's: use another --out")
    return {seed: results[seed] for seed in seeds if seed in results}


def _identity(config: ConfigDict) -> dict:
    """The config as JSON gives it back, without what differs between runs of a cell."""
    values = {name: value for name, value in config.to_dict().items() if name not in ("seed", "distributed")}
    return json.loads(json.dumps(values))
