"""The train step of a config, put together as `lape_jax.train.loop` does it but without its data: for benchmarks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lape_jax import cli, models, tasks
from lape_jax.analysis import overhead
from lape_jax.parallel import fit, sharding
from lape_jax.train import chrono, optim, programs, setup
from lape_jax.train import plan as plans
from lape_jax.train import state as states

# (classes, training images) of the data sets that configs name; 1000 classes of ImageNet's size for all others.
DATASETS = {"cifar10": (10, 50_000), "cifar100": (100, 50_000), "ade20k": (150, 20_210), "coco": (80, 117_266)}
IMAGENET = (1000, 1_281_167)


class Step(NamedTuple):
    """What a run repeats, and what goes into it."""

    model: Any
    loss: Callable  # (params, collections, augmented batch, key, *frozen) -> (sum, (sums, collections))
    update: Callable  # (state, batch, *frozen) -> state
    init: Callable  # key -> state
    state: states.TrainState  # shapes and shardings
    batch: dict[str, jax.ShapeDtypeStruct]  # with shardings
    augmented: dict[str, jax.ShapeDtypeStruct]  # what the loss takes
    frozen: tuple  # shapes and shardings of the variables of a distilled model's teacher


def load(file: str, batch: int, settings: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """A config of configs/, as if its data were there, with some settings changed."""
    name = Path(file).name
    arg = f"batch={batch},path=unread"
    arg += ",teacher=unread" if "distilled" in name else ""
    arg += ",source=tfds" if name.startswith(("segmenter_", "upernet_")) else ""
    return cli.load_config(f"{file}:{arg}", "", settings)


def build(config: ConfigDict, mesh: jax.sharding.Mesh) -> Step:
    """The step of `config` on `mesh`; nothing is computed."""
    classes, images = _data(config)
    model = setup.build_model(config, classes)
    plan = plans.make(config, images)
    tx = optim.make(config.optimizer, model.param_shapes(), plan.learning_rate, model.no_weight_decay)
    init = states.initialiser(model, tx, ema=config.ema_decay > 0, task=tasks.of(config))
    frozen, teacher = (), None
    if config.distill.model:
        teacher = models.create(config.distill.model, num_classes=classes, dtype=model.dtype)
        frozen = (_replicated(teacher.variable_shapes(), mesh),)
    shape, images = tasks.of(config).shapes(config, model.input_shape)["image"].shape, config.batch_size
    fitted = fit.training(model, mesh, shape, images // config.optimizer.accumulate).model
    loss = tasks.of(config).loss(config, fitted, teacher)
    update = setup.update(config, fitted, plan.mixing, tx, mesh, teacher)
    abstract = states.abstract(init, mesh, config.sharding)
    batch = _batch(config, mesh)
    augment = tasks.of(config).augmentation(config, model, mesh)
    augmented = jax.eval_shape(augment, batch, jax.random.key(0), True)
    return Step(fitted, loss, update, init, abstract, batch, augmented, frozen)


def inference(file: str, batch: int, joining: str, devices: Sequence[Any]) -> tuple[Any, float, jax.stages.Compiled]:
    """What a config's model, with this joining (or folded), is evaluated by; its FLOPs in products, and the program."""
    config = load(file, batch)
    settings = {**config.model.to_dict(), "dtype": jnp.dtype(config.dtype), "num_classes": _data(config)[0]}
    name = settings.pop("name")
    del settings["join"]
    found = {one.joining: one for one in overhead.candidates(name, settings)[0]}
    bare = programs.bare_config(name, found["lape"].model)
    task = programs.inference(found[joining], devices, config=bare, batch=batch)
    flops = float(chrono.matrix_flops(jax.make_jaxpr(task.function)(*task.shapes)))
    return found[joining].model, flops, task.function.lower(*task.shapes).compile()


def _data(config: ConfigDict) -> tuple[int, int]:
    """Classes and training images."""
    return DATASETS.get(config.data.name or config.data.source, IMAGENET)


def _replicated(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    everywhere = sharding.replicated(mesh)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), shapes)


def _batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    rows = sharding.batch_sharding(mesh, config.batch_size)
    task, size, channels = tasks.of(config), config.data.image_size, config.data.channels
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *row.shape), row.dtype, sharding=rows)
        for name, row in task.host_shapes(config, task.shapes(config, (size, size, channels))).items()
    }


def compile_step(step: Step) -> jax.stages.Compiled:
    """The step, compiled as training runs it: the old state's memory becomes the new one's."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    jitted = jax.jit(step.update, donate_argnums=0, out_shardings=shardings)
    return jitted.lower(step.state, step.batch, *step.frozen).compile()


def matrix_flops(step: Step) -> float:
    """FLOPs of all matrix products in loss and gradient of one batch, over all devices, remat's among them."""
    gradient = jax.make_jaxpr(jax.grad(step.loss, has_aux=True))
    variables = step.state.params, step.state.collections
    return float(chrono.matrix_flops(gradient(*variables, step.augmented, jax.random.key(0), *step.frozen)))


def used_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of one device that the program needs: arguments, results in memory of their own, and temporaries."""
    used = compiled.memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes + used.temp_size_in_bytes
