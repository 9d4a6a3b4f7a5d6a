"""Several seeds of one config trained at the same time: one program on one device, `jax.vmap`ed over the seeds.

A small model leaves most of a device idle, and the compilation and each step's overhead are paid once for all seeds.
Each seed makes the steps that `lape_jax.train.loop` makes of the same config: its own initial weights, order of
examples and random numbers; what differs is rounding. Seed s leaves a workdir DIR/seed_s like any other run's.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.train import feed, optim, setup, sharding
from lape_jax.train import plan as plans
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.evaluation import Evaluator
from lape_jax.train.signals import StopRequest
from lape_jax.train.writers import Console, Writers

TOGETHER = "together"  # directory of what belongs to all seeds while they train


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


def train(config: ConfigDict, seeds: Sequence[int], directory: Path, console: Console) -> dict[int, dict] | None:
    """Trains all `seeds` of `config`, or goes on with it, and returns the last evaluation of each.

    A seed whose loss became NaN or infinite goes on without a meaning, and has {"error": when} in place of metrics.
    SIGTERM and Ctrl-C save a checkpoint at the next boundary between steps and end it (Ctrl-C: KeyboardInterrupt).

    Args:
        config: complete and valid; `why_not` has nothing against it, and its own seed is not used.
        seeds: different from each other.
        directory: of these runs and no others.
        console: for progress.

    Returns:
        {seed: metrics}, or None if SIGTERM ended it before its time.

    Raises:
        UserError: config, data, directory or checkpoint do not fit.
    """
    together = directory / TOGETHER
    runs = _Runs(config, seeds)
    with (
        workdirs.claim(together),
        Checkpoints(together, keep=1) as checkpoints,
        StopRequest() as stop,
        contextlib.ExitStack() as stack,
    ):
        _claim(config, seeds, together)
        state, step = checkpoints.restore(runs.abstract) or (runs.create(), 0)
        writers = [stack.enter_context(runs.writers(directory, seed, step)) for seed in seeds]
        begin, first, results = None, step, None
        while step < runs.plan.total and not stop.due():
            count = runs.plan.upto(step, runs.feed.max_steps)
            state = runs.feed.run(state, step, count)
            step += count
            if begin is None:  # the first call has compiled
                jax.block_until_ready(state.step)
                begin, first = time.perf_counter(), step
            due = runs.plan.due(step)
            if "log" in due:
                logged = runs.logged(state, step)
                state = state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
                for writer, scalars in zip(writers, logged, strict=True):
                    writer.write(step, scalars)
                seconds = time.perf_counter() - begin
                rate = len(seeds) * config.batch_size * (step - first) / seconds if step > first else None
                _show(console, step, runs.plan.total, logged, rate)
            if "eval" in due:
                results = runs.evaluate(state)
                for writer, metrics in zip(writers, results, strict=True):
                    writer.write(step, metrics)
            if "checkpoint" in due:
                checkpoints.save(step, state)
        if step < runs.plan.total:
            checkpoints.save(step, state)
            checkpoints.wait()
            if stop.received.name == "SIGINT":
                raise KeyboardInterrupt
            return None
        checkpoints.wait()
        results = results or runs.evaluate(state)  # if all steps had been made before
        runs.leave(directory, state, results)
    shutil.rmtree(together)
    bad = jax.device_get(state.first_bad_step)
    return {
        seed: metrics if b == states.NEVER else {"error": f"the loss became NaN or infinite in step {b}"}
        for seed, metrics, b in zip(seeds, results, bad, strict=True)
    }


class _Runs:
    """What the runs of all seeds are made of; states have a leading axis of seeds."""

    def __init__(self, config: ConfigDict, seeds: Sequence[int]):
        self.config, self.seeds = config, seeds
        self._sources = sources.open_split(config.data, "train"), sources.open_split(config.data, "val")
        source, val_source = self._sources
        model = setup.build_model(config, len(source.classes))
        setup.check_training(config, model)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        self.plan = plan = plans.make(config, len(source))
        tx = optim.make(config.optimizer, model.param_shapes(), plan.learning_rate)
        init = states.initialiser(model, tx, ema=config.ema_decay > 0)
        self._init = jax.vmap(lambda seed: init(jax.random.key(seed)))
        self._numbers = np.asarray(seeds, np.int32)
        here = sharding.replicated(mesh)
        self.abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            jax.eval_shape(self._init, self._numbers),
        )

        def update(state, batch, seed):
            return setup.update(config, model, plan, tx, mesh, seed=seed)(state, batch)

        self.feed = feed.Resident(
            jax.vmap(update),
            setup.training_set(config, source),
            jax.tree.map(lambda leaf: leaf.sharding, self.abstract),
            mesh,
            indices=lambda step: np.stack([setup.batch_indices(config, len(source), step, seed) for seed in seeds]),
            batch_size=len(seeds),
            max_steps=config.steps_per_dispatch,
            frozen=(jnp.asarray(self._numbers),),
        )
        self._evaluator = Evaluator(model, config, mesh, setup.evaluation_batches(config, val_source), len(val_source))

    def create(self) -> states.TrainState:
        """All states at step 0."""
        return jax.jit(self._init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract))(self._numbers)

    def writers(self, directory: Path, seed: int, step: int) -> Writers:
        """Those of a seed, whose workdir they make."""
        workdir = seed_dir(directory, seed)
        writers = Writers(workdir, step, console=Console(enabled=False))
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        writers.write_config(config)
        workdirs.write_data(workdir, *self._sources)
        return writers

    def logged(self, state: states.TrainState, step: int) -> list[dict[str, float]]:
        """What each seed's log line says."""
        common = {"lr": float(self.plan.learning_rate(step - 1)), "epoch": step / self.plan.steps_per_epoch}
        sums = jax.device_get(state.sums)
        return [states.means({name: s[i] for name, s in sums.items()}) | common for i in range(len(self.seeds))]

    def evaluate(self, state: states.TrainState) -> list[dict[str, float]]:
        """The metrics of each seed, one after another."""
        results = []
        for i in range(len(self.seeds)):
            results.append(self._evaluator(_part(state.variables, i)))
            if state.ema is not None:
                results[-1] |= self._evaluator(_part(state.ema, i), prefix="val/ema_")
        return results

    def leave(self, directory: Path, state: states.TrainState, results: list[dict]) -> None:
        """Writes the last checkpoint of each seed to its workdir."""
        for i, seed in enumerate(self.seeds):
            with Checkpoints(seed_dir(directory, seed)) as checkpoints:
                checkpoints.save(self.plan.total, _part(state, i), results[i])
                checkpoints.wait()


def _show(console: Console, step: int, total: int, logged: list[dict[str, float]], rate: float | None) -> None:
    mean = {"train/loss": np.mean([scalars["train/loss"] for scalars in logged])}
    console.progress(step, total, mean if rate is None else mean | {"img_per_sec": rate})


def _part(tree: Any, i: int) -> Any:
    """That of seed number `i`."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _claim(config: ConfigDict, seeds: Sequence[int], together: Path) -> None:
    """Notes what trains in `together`; raises UserError if something else has begun there."""
    values = {name: value for name, value in config.to_dict().items() if name not in ("seed", "distributed")}
    text = json.dumps({"seeds": list(seeds), "config": values}, indent=2, sort_keys=True) + "\n"
    path = together / "cell.json"
    if not path.exists():
        path.write_text(text)
    elif path.read_text() != text:
        raise UserError(
            f"{str(together)!r} holds what has begun with other seeds or another config: go on with those of "
            f"{str(path)!r}, or use another directory"
        )
