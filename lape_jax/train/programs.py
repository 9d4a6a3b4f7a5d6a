"""Train step and evaluation of a run without its data, for `lape_jax.analysis.overhead` to measure."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from lape_jax import tasks
from lape_jax.analysis.overhead import Candidate, Task
from lape_jax.errors import UserError
from lape_jax.parallel import fit, sharding
from lape_jax.tasks.config import base
from lape_jax.train import setup
from lape_jax.train import state as states


def bare_config(name: str, model: Any) -> ConfigDict:
    """The config of a run that does not augment.

    Raises:
        UserError: the model cannot be trained.
    """
    config = base()
    config.model.name = name
    config.task = next((task.name for task in tasks.TASKS.values() if task.answers == model.answers), config.task)
    config.data.image_size, _, config.data.channels = model.input_shape
    config.data.mean = config.data.std = (0.5,) * config.data.channels
    setup.check_training(config, model)
    if not model.num_classes:
        raise UserError(f"num_classes={model.num_classes}: training needs classes")
    return config


def training(one: Candidate, devices: Sequence[Any], *, config: ConfigDict, batch: int) -> Task:
    """The train step, by AdamW; each call of it takes what the last has made. A distilled model has no teacher."""
    mesh, tx = sharding.make_mesh(config.mesh, devices), optax.adamw(1e-3)
    update = setup.update(config, fit.attention(one.model, mesh), 0, tx, mesh)
    init = states.initialiser(one.model, tx, ema=False, task=tasks.of(config))
    shapes = states.abstract(init, mesh, sharding.REPLICATED)
    images = tasks.of(config).random_batch(config, one.model, batch)

    def call(program):
        state, data = states.create(init, shapes, seed=0), jax.device_put(images, rows)

        def step():
            nonlocal state
            state = jax.block_until_ready(program(state, data))

        return step

    rows = sharding.batch_sharding(mesh, batch, setting="--batch")
    function = jax.jit(update, donate_argnums=0, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))
    return Task(function, (shapes, like(images, rows)), call)


def inference(one: Candidate, devices: Sequence[Any], *, config: ConfigDict, batch: int) -> Task:
    """What the task evaluates of a batch by."""
    mesh = sharding.make_mesh(config.mesh, devices)
    images = tasks.of(config).random_batch(config, one.model, batch)
    rows, everywhere = sharding.batch_sharding(mesh, batch, setting="--batch"), sharding.replicated(mesh)

    def call(program):
        variables, data = jax.device_put(one.variables, everywhere), jax.device_put(images, rows)
        return lambda: jax.block_until_ready(program(variables, data))

    function = jax.jit(tasks.of(config).inference(config, fit.attention(one.model, mesh)))
    return Task(function, (like(one.variables, everywhere), like(images, rows)), call)


def like(tree: Any, placed: jax.sharding.Sharding) -> Any:
    """Shapes and types of arrays, and where they lie."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), tree)
