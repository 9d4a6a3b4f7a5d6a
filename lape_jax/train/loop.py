"""A run from its config to its report: everything is put together here, and driven by `lape_jax.train.drive`."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.parallel import compiled, fit, hosts, sharding
from lape_jax.train import chrono, experiment, feed, optim, report, setup, teacher, warm_start
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.drive import drive
from lape_jax.train.experiment import Experiment
from lape_jax.train.signals import StopRequest
from lape_jax.train.single_run import SingleRun, evaluated
from lape_jax.train.writers import Console, Writers, clock_time

_log = logging.getLogger(__name__)


def train_and_evaluate(
    config: ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> dict[str, float]:
    """Trains as `config` says and leaves everything in `workdir`; resumes there if a run was interrupted.

    The state at a step, and the metrics written up to it, are functions of the config alone: not of when the run was
    interrupted. SIGTERM and Ctrl-C save a checkpoint at the next step boundary and return (Ctrl-C: KeyboardInterrupt).

    Args:
        config: complete and valid (see `lape_jax.tasks.config.validate`).
        workdir: created if it does not exist.
        devices: to train on, by default all.

    Returns:
        The last evaluation's metrics, e.g. {"val/top1": 97.8, ...} in percent; of an interrupted run those so far.

    Raises:
        UserError: config, data, workdir or checkpoint do not fit, or the loss became NaN or infinite.
    """
    workdir = Path(workdir)

    # ---- What it is made of: what does not fit is said before anything is decoded, restored or written -------------
    e = experiment.make(config, devices)
    task, model, mesh, total = e.task, e.model, e.mesh, e.plan.total
    shapes, accumulate = task.shapes(config, model.input_shape), config.optimizer.accumulate
    setting = "config.batch_size" + (" / config.optimizer.accumulate =" if accumulate > 1 else "")
    sharding.batch_sharding(mesh, config.batch_size // accumulate, setting=setting)
    fitted = fit.training(model, mesh, shapes["image"].shape, config.batch_size // accumulate)
    taught_by = teacher.load(config, model, e.classes, mesh)

    # ---- State: shapes first, then created (or restored) right where it belongs --------------------------------------
    abstract = states.abstract(e.init, mesh, config.sharding)
    update = setup.update(config, fitted.model, e.plan.mixing, e.tx, mesh, taught_by.model if taught_by else None)
    update = sharding.pin_batch(update, mesh)
    differences = setup.compare_with_workdir(config, model, workdir)
    differences += workdirs.compare_data(workdir, e.source, e.val_source)

    with (
        workdirs.claim(workdir),
        compiled.cache(config.compilation_cache, workdir, mesh) as kept,
        Checkpoints(workdir, config.keep_checkpoints) as checkpoints,
        StopRequest() as stop,
    ):
        restored = checkpoints.restore(abstract)
        state, step = restored or (warm_start.create(e, abstract), 0)
        if step > total:
            raise UserError(
                f"{workdir} holds a run of {step} steps, more than the {total} that the config asks for: raise "
                f"config.total_*, or use another --workdir"
            )
        evaluator = task.evaluator(config, fitted.model, mesh, e.val_source)
        frozen = (taught_by.variables,) if taught_by else ()
        opened = _open_feed(e, update, frozen, abstract, step)

        # From here on everything fits, for all processes, so the workdir may be changed.
        hosts.barrier("begin")
        with contextlib.closing(opened) as batches, Writers(workdir, step, project=config.wandb) as writers:
            writers.write_config(config)
            workdirs.write_data(workdir, e.source, e.val_source)
            for line in differences if jax.process_index() == 0 else ():
                _log.warning("%s", line)
            flops = chrono.training_flops(model, model.variable_shapes(), taught_by, shapes["image"].shape)
            peak = chrono.peak_flops(mesh.devices.flatten().tolist())
            clock = chrono.Chrono(total, config.batch_size, flops, peak, devices=mesh.size)
            _introduce(writers.console, e, step)
            for line in filter(None, (fitted.reason, kept)):
                writers.console.line(line)
            for line in task.survey(config, model, e.source, e.val_source) if jax.process_index() == 0 else ():
                writers.console.line(line)

            # ---- The steps -----------------------------------------------------------------------------------------
            run = SingleRun(config, e.plan, batches, evaluator, checkpoints, writers, clock, len(e.source))
            first_step = step
            state, step, results = drive(run, state, step, stop)

            # ---- The end, or the interruption ----------------------------------------------------------------------
            if step < total:
                run.check(state, step)
                checkpoints.save(step, state)
                checkpoints.wait()
                writers.console.summary(
                    f"stopped by {stop.received.name} at step {step}/{total}, saved in {workdir}; "
                    f"the same command resumes"
                )
                hosts.barrier("interrupted")  # all have saved before the first one leaves
                if stop.received.name == "SIGINT":
                    raise KeyboardInterrupt
                return results or {}
            checkpoints.wait()
            if not results:  # the run had been complete before
                results = evaluated(evaluator, state)
            if config.report:
                writers.write_images(step, report.write(workdir, e, state, checkpoints.best_step()))
            head = f"done: {total} steps"
            if clock.img_per_sec:
                head += f", the last {total - first_step}" if first_step else ""
                head += f" in {clock_time(clock.seconds)}, {clock.img_per_sec:,.0f} img/s"
            writers.console.summary(
                f"{head}  {task.describe(results)}  best checkpoint: step {checkpoints.best_step()}, in {workdir}"
            )
            return results


def _open_feed(
    e: Experiment, update: Callable, frozen: tuple, abstract: states.TrainState, step: int
) -> feed.Resident | feed.Streamed:
    """Where the batches come from: the device, if the whole set lies there, else the host."""
    config, task, mesh = e.config, e.task, e.mesh
    options = fit.compiler_options(config.deterministic, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = task.resident(config, e.source)
    if whole is not None:
        return feed.Resident(
            update,
            whole,
            shardings,
            mesh,
            indices=lambda step: setup.batch_indices(config, len(e.source), step, config.seed),
            batch_size=config.batch_size,
            max_steps=config.steps_per_dispatch,
            frozen=frozen,
            compiler_options=options,
        )
    shapes = task.host_shapes(config, task.shapes(config, e.model.input_shape))
    share = sharding.host_share(mesh, config.batch_size)
    batches = task.training_batches(config, e.source, step, e.plan.total, share)
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


def _introduce(console: Console, e: Experiment, step: int) -> None:
    config, model, mesh, plan = e.config, e.model, e.mesh, e.plan
    count = parameter_overview.count_parameters(e.params)
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    console.line(
        f"{config.model.name} (join {model.joining}, pe {model.pe}): {count:,} parameters on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} ({axes})"
    )
    for group in optim.describe(config.optimizer, e.params, model.no_weight_decay, config.batch_size):
        console.line(f"  {group}")
    for line in e.task.introduction(config):
        console.line(line)
    start = f"resuming at step {step} of" if step else "training for"
    epochs = f"{plan.total / plan.steps_per_epoch:.1f} epochs of {plan.steps_per_epoch} steps"
    console.line(f"{start} {plan.total} steps ({epochs}, batch {config.batch_size})")
