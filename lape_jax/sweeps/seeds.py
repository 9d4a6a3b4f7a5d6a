"""Several seeds of one config trained at the same time: one program on one device, `jax.vmap`ed over the seeds.

A small model leaves most of a device idle, and the compilation and each step's overhead are paid once for all seeds.
Each seed makes the steps that `lape_jax.train.loop` makes of the same config: its own initial weights, order of
examples and random numbers; what differs is rounding. Seed s leaves a workdir DIR/seed_s like any other run's, with the
last checkpoint only, and no report. What all seeds need to go on lies in DIR/together while they train.
"""

import contextlib
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax import atomic
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.train import experiment, feed, setup
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.drive import drive
from lape_jax.train.signals import StopRequest
from lape_jax.train.single_run import evaluated
from lape_jax.train.writers import Console, Writers

TOGETHER = "together"  # directory of what belongs to all seeds while they train
_CELL = "cell.json"  # in it: which seeds, of which config
_RUNS_ONCE = {"xla_backend_optimization_level": 1}  # half the time to compile on a CPU, and the same bits

_log = logging.getLogger(__name__)


def seed_dir(directory: Path, seed: int) -> Path:
    """The workdir of a seed."""
    return directory / f"seed_{seed}"


def why_not(config: ConfigDict) -> str:
    """What keeps the seeds of `config` from training together; "" if nothing does."""
    if not config.data.resident:
        return "its images do not lie on the device (config.data.resident)"
    if jax.process_count() > 1:
        return "it runs on several processes"
    if config.distill.teacher or config.init.weights:
        return "it needs the weights of another model (config.distill, config.init)"
    if any(config.mesh[axis] not in (1, -1) for axis in sharding.AXES):
        return "it asks for several devices (config.mesh)"
    return ""


def begun(directory: Path) -> list[int]:
    """The seeds that have begun to train together in `directory`, and can go on together only; [] if there are none.

    Raises UserError if that cannot be read.
    """
    with Checkpoints(directory / TOGETHER, read_only=True) as checkpoints:
        if not checkpoints.steps():
            return []
    path = directory / TOGETHER / _CELL
    try:
        return json.loads(path.read_text())["seeds"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{str(path)!r} cannot be read: remove {str(path.parent)!r} to begin again") from None


def discard(directory: Path) -> None:
    """Removes what is needed to go on, once the results that `train` returned are safe."""
    done = directory / f"{TOGETHER}.done"
    shutil.rmtree(done, ignore_errors=True)
    if (directory / TOGETHER).exists():
        (directory / TOGETHER).rename(done)  # at once: whoever dies while removing leaves nothing half removed there
        shutil.rmtree(done)


def train(config: ConfigDict, seeds: Sequence[int], directory: Path, console: Console) -> dict[int, dict] | None:
    """Trains all `seeds` of `config`, or goes on with it, and returns the last evaluation of each.

    A seed whose loss or gradient became NaN or infinite goes on without a meaning while the others train; it leaves no
    checkpoint, and has {"error": when} in place of metrics. SIGTERM and Ctrl-C save a checkpoint at the next boundary
    between dispatches and end it (Ctrl-C: KeyboardInterrupt). Called again after its end, it returns the same results
    without training, until `discard` is called.

    Args:
        config: complete and valid; `why_not` has nothing against it, and its own seed is not used.
        seeds: different from each other, from 0 to 2^31 - 1.
        directory: where these runs are kept, and no others.
        console: for progress.

    Returns:
        {seed: metrics}, or None if SIGTERM ended it before its time.

    Raises:
        UserError: config, data, directory or checkpoint do not fit.
    """
    runs = _Runs(config, seeds, console)
    total = runs.plan.total
    with workdirs.claim(directory), StopRequest() as stop, contextlib.ExitStack() as stack:
        _claim(config, seeds, directory)
        runs.checkpoints = stack.enter_context(Checkpoints(directory / TOGETHER, keep=1))
        restored = runs.checkpoints.restore(runs.abstract)
        runs.check_workdirs(directory, fresh=restored is None)
        state, step = restored or (runs.create(), 0)
        runs.writers = [stack.enter_context(runs.open_writers(directory, seed, step)) for seed in seeds]
        runs.check(state, step)
        state, step, results = drive(runs, state, step, stop)
        if step < total and not runs.over:
            runs.save(state, step, None)
            runs.checkpoints.wait()
            if stop.received.name == "SIGINT":
                raise KeyboardInterrupt
            return None
        runs.checkpoints.wait()
        if not runs.over:
            results = results or runs.evaluated(state)  # if all steps had been made before
            runs.leave(directory, state, results)
    return {
        seed: {"error": reason} if reason else metrics
        for seed, reason, metrics in zip(seeds, runs.wrong, results or [{}] * len(seeds), strict=True)
    }


class _Runs:
    """The runs of all seeds, as `lape_jax.train.drive` drives them; states have a leading axis of seeds.

    Attributes:
        wrong: what went wrong with each seed; "" if nothing did.
        checkpoints: what all seeds need to go on.
        writers: what writes the logs of each seed.
    """

    checkpoints: Checkpoints
    writers: Sequence[Writers]

    def __init__(self, config: ConfigDict, seeds: Sequence[int], console: Console):
        self.config, self.seeds, self._console = config, seeds, console
        self.wrong = [""] * len(seeds)
        e = experiment.make(config, jax.devices()[:1])
        self._task, self._sources = e.task, (e.source, e.val_source)
        mesh, self.plan = e.mesh, e.plan
        self._init = jax.vmap(lambda seed: e.init(jax.random.key(seed)))
        self._numbers = np.asarray(seeds, np.int32)
        here = sharding.replicated(mesh)
        self.abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            jax.eval_shape(self._init, self._numbers),
        )

        def update(state, batch, seed):
            return setup.update(config, e.model, e.plan.mixing, e.tx, mesh, seed=seed)(state, batch)

        self.feed = feed.Resident(
            jax.vmap(update),
            e.task.resident(config, e.source),
            jax.tree.map(lambda leaf: leaf.sharding, self.abstract),
            mesh,
            indices=_batch_indices(config, len(e.source), seeds),
            batch_size=len(seeds),
            max_steps=config.steps_per_dispatch,
            frozen=(jnp.asarray(self._numbers),),
        )
        self._evaluator = e.task.evaluator(config, e.model, mesh, e.val_source)

    def create(self) -> states.TrainState:
        """All states at step 0."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        options = _RUNS_ONCE if jax.default_backend() == "cpu" else None
        return jax.jit(self._init, out_shardings=shardings, compiler_options=options)(self._numbers)

    def check_workdirs(self, directory: Path, fresh: bool) -> None:
        """Raises UserError if fresh runs find others in their workdirs; says how the data have changed."""
        for workdir in (seed_dir(directory, seed) for seed in self.seeds):
            with Checkpoints(workdir, read_only=True) as checkpoints:
                if fresh and checkpoints.steps():
                    raise UserError(f"{str(workdir)!r} holds a run already: remove it, or use another directory")
        for line in workdirs.compare_data(seed_dir(directory, self.seeds[0]), *self._sources):
            _log.warning("%s", line)

    def open_writers(self, directory: Path, seed: int, step: int) -> Writers:
        """Those of a seed, whose workdir they make."""
        workdir = seed_dir(directory, seed)
        writers = Writers(workdir, step, console=Console(enabled=False))
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        writers.write_config(config)
        workdirs.write_data(workdir, *self._sources)
        return writers

    @property
    def max_steps(self) -> int:
        return self.feed.max_steps

    @property
    def over(self) -> bool:
        """Whether something has gone wrong with every seed."""
        return all(self.wrong)

    def first(self, state: states.TrainState, step: int) -> states.TrainState:
        state = jax.block_until_ready(self.feed.run(state, step, 1))
        self._begin = step + 1, time.perf_counter()
        return state

    def steps(self, state: states.TrainState, step: int, count: int) -> states.TrainState:
        return self.feed.run(state, step, count)

    def check(self, state: states.TrainState, step: int) -> None:
        """Notes what went wrong with each seed: its run goes on without a meaning while the others train."""
        self.wrong = [
            "" if bad == states.NEVER else f"the loss or its gradient became NaN or infinite in step {bad}"
            for bad in jax.device_get(state.first_bad_step)
        ]

    def log(self, state: states.TrainState, step: int) -> states.TrainState:
        common = {"lr": float(self.plan.learning_rate(step - 1)), "epoch": step / self.plan.steps_per_epoch}
        sums = jax.device_get(state.sums)
        logged = [
            states.means({name: s[i] for name, s in sums.items()}, self._task) | common for i in range(len(self.seeds))
        ]
        self._write(step, logged)
        first, begin = self._begin
        speed = len(self.seeds) * self.config.batch_size * (step - first) / (time.perf_counter() - begin)
        shown = {"train/loss": np.mean([scalars["train/loss"] for scalars in logged])}
        self._console.progress(step, self.plan.total, shown | {"img_per_sec": speed} if speed else shown)
        return state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))

    def evaluate(self, state: states.TrainState, step: int) -> list[dict[str, float]]:
        results = self.evaluated(state)
        self._write(step, results)
        return results

    def evaluated(self, state: states.TrainState) -> list[dict[str, float]]:
        """The metrics of each seed, one after another."""
        return [evaluated(self._evaluator, _part(state, i)) for i in range(len(self.seeds))]

    def save(self, state: states.TrainState, step: int, results: Sequence[dict] | None) -> None:
        self.checkpoints.save(step, state)

    def _write(self, step: int, scalars: Sequence[dict[str, float]]) -> None:
        for writer, own in zip(self.writers, scalars, strict=True):
            writer.write(step, own)

    def leave(self, directory: Path, state: states.TrainState, results: Sequence[dict]) -> None:
        """Writes the last checkpoint of each seed with which nothing is wrong to its workdir."""
        for i, seed in enumerate(self.seeds):
            if not self.wrong[i]:
                with Checkpoints(seed_dir(directory, seed)) as checkpoints:
                    checkpoints.save(self.plan.total, _part(state, i), results[i])
                    checkpoints.wait()


def _batch_indices(config: ConfigDict, size: int, seeds: Sequence[int]) -> Callable[[int], np.ndarray]:
    """The function step -> the examples of the batch of each seed, (seeds, batch)."""
    length = config.steps_per_dispatch

    @functools.lru_cache(maxsize=2)
    def block(number):
        """Those of `length` steps; seed by seed, because no more than the orders of two epochs are kept at hand."""
        steps = range(number * length, (number + 1) * length)
        return np.stack([[setup.batch_indices(config, size, step, seed) for step in steps] for seed in seeds], axis=1)

    return lambda step: block(step // length)[step % length]


@jax.jit
def _part(state: states.TrainState, i: int | jax.Array) -> states.TrainState:
    """That of seed number `i`; compiled for all of them at once."""
    return jax.tree.map(lambda leaf: leaf[i], state)


def _claim(config: ConfigDict, seeds: Sequence[int], directory: Path) -> None:
    """Notes what trains together in `directory`; raises UserError if something else has begun there."""
    values = {name: value for name, value in config.to_dict().items() if name not in ("seed", "distributed")}
    text = json.dumps({"seeds": list(seeds), "config": values}, indent=2, sort_keys=True) + "\n"
    path = directory / TOGETHER / _CELL
    if not begun(directory):
        path.parent.mkdir(exist_ok=True)
        atomic.write(path, text)
    elif path.read_text() != text:
        raise UserError(
            f"{str(path.parent)!r} holds what has begun with other seeds or another config: go on with those of "
            f"{str(path)!r}, or use another directory"
        )
