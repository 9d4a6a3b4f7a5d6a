"""The one training loop."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from lape_jax import tasks
from lape_jax.errors import UserError, listed
from lape_jax.parallel import compiled, fit, hosts, sharding
from lape_jax.train import chrono, feed, optim, report, setup, teacher, warm
from lape_jax.train import plan as plans
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.signals import StopRequest
from lape_jax.train.writers import Writers, clock_time

_log = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains as `config` says and leaves everything in `workdir`; resumes there if a run was interrupted.

    The state at a step, and the metrics written up to it, are functions of the config alone: not of when the run was
    interrupted. SIGTERM and Ctrl-C save a checkpoint at the next step boundary and return (Ctrl-C: KeyboardInterrupt).

    Args:
        config: complete and valid (see `lape_jax.tasks.config.validate`).
        workdir: created if it does not exist.

    Returns:
        The last evaluation's metrics, e.g. {"val/top1": 97.8, ...} in percent; of an interrupted run those so far.

    Raises:
        UserError: config, data, workdir or checkpoint do not fit, or the loss became NaN or infinite.
    """
    workdir = Path(workdir)

    # ---- Data and model -------------------------------------------------------------------------------------------
    task = tasks.of(config)
    source, val_source = (task.open_split(config, split) for split in ("train", "val"))
    model = setup.build_model(config, len(source.classes))
    shapes = task.shapes(config, model.input_shape)
    mesh = sharding.make_mesh(config.mesh)
    plan = plans.make(config, len(source))
    total = plan.total
    # What does not fit is said before anything is decoded, restored or written.
    setting, accumulate = "config.batch_size", config.optimizer.accumulate
    setting += " / config.optimizer.accumulate =" if accumulate > 1 else ""
    sharding.batch_sharding(mesh, config.batch_size // accumulate, setting=setting)
    setup.check_training(config, model)
    fitted = fit.training(model, mesh, shapes["image"].shape, config.batch_size // accumulate)
    taught_by = teacher.load(config, model, source.classes, mesh)

    # ---- State: shapes first, then created (or restored) right where it belongs --------------------------------------
    params = setup.param_shapes(config, fitted.model)
    tx = optim.make(config.optimizer, params, plan.learning_rate)
    init = states.initialiser(model, tx, ema=config.ema_decay > 0, task=task)
    abstract = states.abstract(init, mesh, config.sharding)
    frozen = (taught_by.variables,) if taught_by else ()
    update = setup.update(config, fitted.model, plan.mixing, tx, mesh, taught_by.model if taught_by else None)
    update = sharding.pin_batch(update, mesh)
    differences = setup.compare_with_workdir(config, model, workdir)
    differences += workdirs.compare_data(workdir, source, val_source)

    with (
        workdirs.claim(workdir),
        compiled.cache(config.compilation_cache, workdir, mesh) as kept,
        Checkpoints(workdir, config.keep_checkpoints) as checkpoints,
        StopRequest() as stop,
    ):
        restored = checkpoints.restore(abstract)
        state, step = restored or (warm.create(config, model, source.classes, init, abstract, mesh), 0)
        if step > total:
            raise UserError(
                f"{workdir} holds a run of {step} steps, more than the {total} that the config asks for: raise "
                f"config.total_*, or use another --workdir"
            )
        evaluator = task.evaluator(config, fitted.model, mesh, val_source)
        opened = _open_feed(config, source, update, frozen, abstract, mesh, step, total, shapes)

        # From here on everything fits, for all processes, so the workdir may be changed.
        hosts.gather("")
        with contextlib.closing(opened) as batches, Writers(workdir, step, project=config.wandb) as writers:
            writers.write_config(config)
            workdirs.write_data(workdir, source, val_source)
            for line in differences if jax.process_index() == 0 else ():
                _log.warning("%s", line)
            flops = chrono.training_flops(model, model.variable_shapes(), taught_by, shapes["image"].shape)
            peak = chrono.peak_flops(mesh.devices.flatten().tolist())
            clock = chrono.Chrono(total, config.batch_size, flops, peak, devices=mesh.size)
            _introduce(writers.console, config, model, mesh, params, step, total, plan.steps_per_epoch)
            for line in filter(None, (fitted.reason, kept)):
                writers.console.line(line)
            for line in task.survey(config, model, source, val_source) if jax.process_index() == 0 else ():
                writers.console.line(line)

            # ---- The loop ------------------------------------------------------------------------------------------
            results: dict[str, float] = {}
            first_step = step
            while step < total and not stop.due():
                # The first call compiles, and makes one step only, so that the clock can start right after it.
                count = plan.upto(step, 1 if step == first_step else batches.max_steps)
                first = step == first_step
                with _saving_first(checkpoints, state), setup.compiling(config) if first else contextlib.nullcontext():
                    if first:
                        with fit.noted() as chosen:
                            state = jax.block_until_ready(batches.run(state, step, count))
                    else:
                        state = batches.run(state, step, count)
                step += count
                due = plan.due(step)

                if first:
                    if chosen:
                        writers.console.line(f"attention: {fit.described(chosen)}")
                    writers.console.line(f"first step made after {clock.seconds:.1f} s (compilation)")
                    clock.start(step, batches.waited)
                if due:
                    _check(state, step, batches, checkpoints, config, len(source))
                if "log" in due:
                    scalars = states.means(state.sums, task) | {"lr": float(plan.learning_rate(step - 1))}
                    scalars |= {"epoch": step / plan.steps_per_epoch} | clock.tick(step, batches.waited)
                    state = state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
                    writers.write(step, scalars)
                    writers.console.progress(step, total, scalars, clock.eta)
                if "eval" in due:
                    with clock.paused(), _saving_first(checkpoints, state):
                        results = _evaluate(evaluator, state)
                    writers.write(step, results)
                    writers.console.line(f"step {step}/{total}  {task.describe(results)}")
                if "checkpoint" in due:
                    checkpoints.save(step, state, results if "eval" in due else None)

            # ---- The end, or the interruption ----------------------------------------------------------------------
            if step < total:
                _check(state, step, batches, checkpoints, config, len(source))
                checkpoints.save(step, state)
                checkpoints.wait()
                writers.console.summary(
                    f"stopped by {stop.received.name} at step {step}/{total}, saved in {workdir}; "
                    f"the same command resumes"
                )
                hosts.gather("")  # all have saved before the first one leaves
                if stop.received.name == "SIGINT":
                    raise KeyboardInterrupt
                return results
            checkpoints.wait()
            if not results:  # the run had been complete before
                results = _evaluate(evaluator, state)
            if config.report:
                figures = report.write(workdir, config, model, state, source, mesh, checkpoints.best_step())
                writers.write_images(step, figures)
            head = f"done: {total} steps"
            if clock.img_per_sec:
                head += f", the last {total - first_step}" if first_step else ""
                head += f" in {clock_time(clock.seconds)}, {clock.img_per_sec:,.0f} img/s"
            writers.console.summary(
                f"{head}  {task.describe(results)}  best checkpoint: step {checkpoints.best_step()}, in {workdir}"
            )
            return results


def _open_feed(
    config: ConfigDict,
    source: Any,
    update: Any,
    frozen: tuple,
    abstract: Any,
    mesh: Any,
    step: int,
    total: int,
    shapes: dict[str, jax.ShapeDtypeStruct],
) -> feed.Resident | feed.Streamed:
    """Where the batches come from: the device, if the whole set lies there, else the host."""
    task, options = tasks.of(config), fit.compiler_options(config.deterministic, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = task.resident(config, source)
    if whole is not None:
        return feed.Resident(
            update,
            whole,
            shardings,
            mesh,
            indices=lambda step: setup.batch_indices(config, len(source), step, config.seed),
            batch_size=config.batch_size,
            max_steps=config.steps_per_dispatch,
            frozen=frozen,
            compiler_options=options,
        )
    shapes, part = task.host_shapes(config, shapes), sharding.host_share(mesh, config.batch_size)
    batches = task.training_batches(config, source, step, total, part)
    return feed.Streamed(
        update,
        batches,
        shardings,
        mesh,
        batch_size=config.batch_size,
        shapes=shapes,
        frozen=frozen,
        compiler_options=options,
    )


@contextlib.contextmanager
def _saving_first(checkpoints: Checkpoints, state: states.TrainState) -> Iterator[None]:
    """If the data cannot be read any further, what was trained so far is saved before the run ends."""
    try:
        yield
    except UserError:
        if int(state.first_bad_step) == states.NEVER:
            checkpoints.save(int(state.step), state)
        raise


def _evaluate(evaluator: Any, state: states.TrainState) -> dict[str, float]:
    """Of the weights, and beside them of their running mean if there is one."""
    results = evaluator(state.variables)
    return results if state.ema is None else results | evaluator(state.ema, prefix="val/ema_")


def _check(
    state: states.TrainState, step: int, batches: Any, checkpoints: Checkpoints, config: ConfigDict, size: int
) -> None:
    """Raises UserError unless `state` is that of `step`, and finite."""
    with _saving_first(checkpoints, state):
        batches.check(state, step)
    bad = int(state.first_bad_step)
    if bad == states.NEVER:
        return
    checkpoints.wait()
    saved = checkpoints.steps()
    indices = listed(setup.batch_indices(config, size, bad, config.seed).tolist(), most=400)
    raise UserError(
        f"the loss or its gradient became NaN or infinite in step {bad} (after {bad} good ones); the last good "
        f"checkpoint is {f'that of step {saved[-1]}' if saved else 'none'}; a smaller --config.optimizer.lr or a "
        f"longer warm-up may help; examples of the batch (all by lape_jax.train.setup.batch_indices): [{indices}]"
    )


def _introduce(
    console: Any, config: Any, model: Any, mesh: Any, params: Any, step: int, total: int, epoch: int
) -> None:
    count = parameter_overview.count_parameters(params)
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    console.line(
        f"{config.model.name} (join {model.joining}, pe {model.pe}): {count:,} parameters on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} ({axes})"
    )
    for group in optim.describe(config.optimizer, params, config.batch_size):
        console.line(f"  {group}")
    for line in tasks.of(config).introduction(config):
        console.line(line)
    start = f"resuming at step {step} of" if step else "training for"
    console.line(f"{start} {total} steps ({total / epoch:.1f} epochs of {epoch} steps, batch {config.batch_size})")
