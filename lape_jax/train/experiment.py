"""What a run is made of, from its config and its data to the function that makes the state at step 0."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from lape_jax import tasks
from lape_jax.parallel import sharding
from lape_jax.tasks.task import Task
from lape_jax.train import optim, setup
from lape_jax.train import plan as plans
from lape_jax.train import state as states


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run that has not begun.

    Attributes:
        config: complete and valid.
        task: what is learned.
        source, val_source: examples to train on, and to evaluate by.
        model: as the config says; how it runs on the devices is not decided yet.
        mesh: the mesh of devices that it will run on.
        plan: what is due when.
        params: shapes and types of the parameters.
        tx: the optimiser.
    """

    config: ConfigDict
    task: Task
    source: Any
    val_source: Any
    model: Any
    mesh: jax.sharding.Mesh
    plan: plans.Plan
    params: dict
    tx: optax.GradientTransformation

    @property
    def init(self) -> Callable[[jax.Array], states.TrainState]:
        """The function key -> state at step 0."""
        return states.initialiser(self.model, self.tx, self.config.ema_decay > 0, self.task)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is learned."""
        return tuple(self.source.classes)


def make(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """The run of a config, on these devices, by default all; nothing is decoded, computed or written yet.

    Raises:
        UserError: config and data do not fit each other or the devices, or the model cannot learn the task.
    """
    task = tasks.of(config)
    source, val_source = (task.open_split(config, split) for split in ("train", "val"))
    model = setup.build_model(config, len(source.classes))
    mesh = sharding.make_mesh(config.mesh, devices)
    plan = plans.make(config, len(source))
    setup.check_training(config, model)
    params = setup.param_shapes(config, model)
    tx = optim.make(config.optimizer, params, plan.learning_rate, model.no_weight_decay)
    return Experiment(config, task, source, val_source, model, mesh, plan, params, tx)
