"""The train step of a config, put together as `lape_jax.train.loop` does it but without its data: for benchmarks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lape_jax import models
from lape_jax.parallel import sharding
from lape_jax.tasks.classify import distill
from lape_jax.tasks.classify import loss as classify
from lape_jax.tasks.segment import loss as segment
from lape_jax.train import chrono, optim, setup
from lape_jax.train import plan as plans
from lape_jax.train import state as states

# (classes, training images) of the data sets that configs name; 1000 classes of ImageNet's size for all others.
DATASETS = {"cifar10": (10, 50_000), "cifar100": (100, 50_000), "ade20k": (150, 20_210)}
IMAGENET = (1000, 1_281_167)


class Step(NamedTuple):
    """What a run repeats, and what goes into it."""

    model: Any
    loss: Callable  # (params, collections, augmented batch, key, *frozen) -> (sum, (sums, collections))
    update: Callable  # (state, batch, *frozen) -> state
    init: Callable  # key -> state
    state: states.TrainState  # shapes and shardings
    batch: dict[str, jax.ShapeDtypeStruct]  # with shardings
    frozen: tuple  # shapes and shardings of the variables of a distilled model's teacher


def build(config: ConfigDict, mesh: jax.sharding.Mesh) -> Step:
    """The step of `config` on `mesh`; nothing is computed."""
    classes, images = DATASETS.get(config.data.name, IMAGENET)
    model = setup.build_model(config, classes)
    plan = plans.make(config, images)
    tx = optim.make(config.optimizer, model.param_shapes(), plan.learning_rate)
    init = states.initialiser(model, tx, ema=config.ema_decay > 0, task=setup.task(config))
    loss, frozen, teacher = classify.training_loss(model), (), None
    if config.task == "segment":
        loss = segment.training_loss(model, config.segment.mean_over)
    elif getattr(model, "distilled", False):
        teacher = models.create(config.distill.model, num_classes=classes, dtype=model.dtype)
        loss = distill.training_loss(model, teacher, config.distill.alpha)
        frozen = (_replicated(teacher.variable_shapes(), mesh),)
    update = setup.update(config, model, plan.mixing, tx, mesh, teacher)
    abstract = states.abstract(init, mesh, config.sharding)
    return Step(model, loss, update, init, abstract, _batch(config, mesh), frozen)


def _replicated(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    everywhere = sharding.replicated(mesh)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), shapes)


def _batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    rows = sharding.batch_sharding(mesh, config.batch_size)
    image = (config.data.image_size, config.data.image_size, config.data.channels)
    label = image[:2] if config.task == "segment" else ()
    kinds = {"image": (image, jnp.uint8), "label": (label, jnp.int32), "mask": ((), jnp.float32)}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=rows)
        for name, (shape, dtype) in kinds.items()
    }


def compile_step(step: Step) -> jax.stages.Compiled:
    """The step, compiled as training runs it: the old state's memory becomes the new one's."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    jitted = jax.jit(step.update, donate_argnums=0, out_shardings=shardings)
    return jitted.lower(step.state, step.batch, *step.frozen).compile()


def matrix_flops(step: Step) -> float:
    """FLOPs of all matrix products in loss and gradient of one batch, over all devices, remat's among them."""
    size, classes = step.batch["label"].shape[0], step.model.num_classes
    float_image = jax.ShapeDtypeStruct((size, *step.model.input_shape), jnp.float32)
    batch = {**step.batch, "image": float_image, "target": jax.ShapeDtypeStruct((size, classes), jnp.float32)}
    gradient = jax.make_jaxpr(jax.grad(step.loss, has_aux=True))
    variables = step.state.params, step.state.collections
    return float(chrono.matrix_flops(gradient(*variables, batch, jax.random.key(0), *step.frozen)))


def used_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of one device that the program needs: arguments, results in memory of their own, and temporaries."""
    used = compiled.memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes + used.temp_size_in_bytes
