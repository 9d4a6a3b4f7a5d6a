"""From a config to the things a run is made of: model, data, optimiser. Training and evaluation share it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lape_jax import models
from lape_jax.augment import recipe
from lape_jax.data import order, pipeline, resident, scene_pipeline, scenes, sources
from lape_jax.data.example import PADDING, SceneSource, Source
from lape_jax.errors import UserError
from lape_jax.models.regnet import RegNet
from lape_jax.nn import position
from lape_jax.tasks import classify, distill, segment
from lape_jax.train import config as configs
from lape_jax.train import optim
from lape_jax.train import state as states
from lape_jax.train.evaluation import Evaluator
from lape_jax.train.segmentation import SceneEvaluator


def build_model(config: ConfigDict, num_classes: int) -> Any:
    """The model of `config.model`; the rest of the config and the data imply image size, channels, type and classes.

    Raises:
        UserError: `config.model` contradicts the data or the task, or cannot be built.
    """
    implied = {
        "num_classes": num_classes,
        "image_size": config.data.image_size,
        "in_channels": config.data.channels,
        "dtype": jnp.dtype(config.dtype),
    }
    given = config.model.to_dict()
    for key, value in implied.items():
        if given.get(key, value) != value:
            raise UserError(
                f"config.model.{key} is {given[key]!r}, but the data and the rest of the config make it {value!r}: "
                f"leave it out"
            )
    model = models.create(**{**implied, **given})
    given = getattr(model, "logits_of", "image")
    if given != {"classify": "image", "segment": "pixel"}[config.task]:
        raise UserError(
            f"config.task is {config.task!r}, but {config.model.name} gives a class to "
            f"{'nothing' if given == 'nothing' else f'each {given}'}"
        )
    return model


def task(config: ConfigDict) -> ModuleType:
    """The module of `lape_jax.tasks` with the metrics of the run's task."""
    return {"classify": classify, "segment": segment}[config.task]


def open_split(config: ConfigDict, split: str) -> Source | SceneSource:
    """The examples of "train" or "val".

    Raises:
        UserError: they are missing, or not laid out as they should be.
    """
    return (scenes.open_scenes if config.task == "segment" else sources.open_split)(config.data, split)


def update(
    config: ConfigDict,
    model: Any,
    mixing: int,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    teacher: Any = None,
    seed: int | jax.Array | None = None,
) -> Callable[..., states.TrainState]:
    """The function (state, batch, *frozen) -> state of one step of a run, see `lape_jax.train.state.update_function`.

    Args:
        mixing: steps with mixup and CutMix.
        tx: the optimiser.
        mesh: that the batch is split over.
        teacher: the model that teaches, if there is one; its variables are then the update's one `frozen` argument.
        seed: instead of config.seed; may be traced.
    """
    if config.task == "segment":
        augment, loss = recipe.make_scenes(config, PADDING), segment.training_loss(model, config.segment.mean_over)
    else:
        augment = recipe.make(config, num_classes=model.num_classes, mesh=mesh)
        loss = classify.training_loss(model)
    if teacher is not None:
        loss = distill.training_loss(model, teacher, config.distill.alpha)
    return states.update_function(
        loss,
        tx,
        lambda batch, key, step: augment(batch, key, step < mixing),
        seed=config.seed if seed is None else seed,
        accumulate=config.optimizer.accumulate,
        ema_decay=config.ema_decay,
    )


def abstract_state(config: ConfigDict, model: Any, mesh: jax.sharding.Mesh, strategies: Any) -> states.TrainState:
    """What a checkpoint of `config`'s run is restored by: see `lape_jax.train.state.abstract`."""
    tx = optim.make(config.optimizer, model.param_shapes(), float)  # of the optimiser only its state's shapes matter
    return states.abstract(states.initialiser(model, tx, config.ema_decay > 0, task(config)), mesh, strategies)


def check_training(config: ConfigDict, model: Any) -> None:
    """Raises UserError if the model cannot be trained, or where clipping the gradient would stop all learning.

    The latter: the class row of `sincos_2d` is zero, and so is its PE as long as the biases of the PE's LayerNorms are:
    each of them then multiplies the gradient of those biases by 1/sqrt(eps), and the clipped rest of the gradient is
    nothing.
    """
    if isinstance(model, RegNet):
        raise UserError(f"{config.model.name} is here to teach (config.distill.model) and to be evaluated, not trained")
    if getattr(model, "pool", None) == "none":
        raise UserError("config.model.pool='none' gives each patch logits of its own, and images have one label each")
    flat_row = model.pe.startswith(position.SINCOS_2D) and model.extra_rows > model.bare_rows + model.unused_rows
    amplified = model.joining == "lape" and model.pe_norm == "layernorm" and model.depth > 1
    if config.optimizer.clip_norm and flat_row and amplified:
        raise UserError(
            "config.optimizer.clip_norm cannot be used with pe='sincos_2d' and join='lape', where the gradient of the "
            "PE biases starts out 1000 times larger in each layer and clipping would stop learning: set it to 0"
        )


def evaluator(config: ConfigDict, model: Any, mesh: jax.sharding.Mesh, source: Any) -> Callable[..., dict]:
    """The function (variables, prefix="val/") -> metrics over all examples of `source`."""
    if config.task == "segment":
        return SceneEvaluator(model, config, mesh, source)
    return Evaluator(model, config, mesh, evaluation_batches(config, source), len(source))


def evaluation_batches(config: ConfigDict, source: Source) -> Callable[[int, int, int], Iterable[dict]]:
    """The function (batch size, i, n) -> the i-th of n equal parts of every batch of an evaluation over `source`.

    A resident data set is decoded once, on the first call.
    """
    crop = {
        "size": config.data.image_size,
        "channels": config.data.channels,
        "crop_ratio": config.data.crop_ratio,
        "threads": config.data.threads,
    }
    if not config.data.resident:
        return lambda batch_size, i, n: pipeline.eval_batches(
            source, batch_size=batch_size, process_index=i, process_count=n, **crop
        )
    load = functools.cache(lambda: resident.load(source, **crop))
    return lambda batch_size, i, n: resident.batches(load(), batch_size, i, n)


def training_set(config: ConfigDict, source: Source) -> resident.Batch:
    """All of a resident training set, as whole images: crops are drawn on the device."""
    data = config.data
    return resident.load(
        source,
        size=data.image_size,
        channels=data.channels,
        crop_ratio=1.0,
        threads=data.threads,
        max_corrupt=data.max_corrupt,
    )


def host_crop(config: ConfigDict) -> dict[str, Any]:
    """How training images are cropped before they go to the device: not at all, if it is drawn there."""
    data = config.data
    whole = data.pad > 0 or data.resident
    return {
        "size": data.image_size,
        "scale": (1.0, 1.0) if whole else data.scale,
        "ratio": (1.0, 1.0) if whole else data.ratio,
        "interpolation": data.interpolation,
    }


def scene_crop(config: ConfigDict) -> dict[str, Any]:
    """How training images and their maps are resized, cropped, mirrored and distorted."""
    segment = config.segment
    return {
        "size": config.data.image_size,
        "scale": segment.scale,
        "scale_range": segment.scale_range,
        "max_class": segment.max_class,
        "flip": config.augment.flip,
        "distort": segment.distort,
    }


def training_batches(
    config: ConfigDict, source: Source, batch_size: int, start: int, total: int, part: tuple[int, int] = (0, 1)
) -> pipeline.Batches:
    """This host's part (i of n) of the batches of the steps start..total-1, before what the device does to them."""
    data = config.data
    common = {
        "seed": config.seed,
        "batch_size": batch_size,
        "start_step": start,
        "total_steps": total,
        "channels": data.channels,
        "threads": data.threads,
        "max_corrupt": data.max_corrupt,
        "process_index": part[0],
        "process_count": part[1],
    }
    if config.task == "segment":
        return scene_pipeline.train_scene_batches(source, **common, **scene_crop(config))
    repeats = {"repeats": data.repeats, "repeat_ranks": data.repeat_ranks}
    return pipeline.train_batches(source, **common, **host_crop(config), **repeats)


def batch_indices(config: ConfigDict, size: int, step: int, seed: int) -> np.ndarray:
    """The examples of a step's batch, of so many; `seed` orders them."""
    data = config.data
    return order.batch_indices(seed, step, config.batch_size, size, repeats=data.repeats, ranks=data.repeat_ranks)


def compare_with_workdir(config: ConfigDict, model: Any, workdir: Path) -> list[str]:
    """How `config` differs from the one that the run in `workdir` has had so far, one line per key.

    Raises:
        UserError: it describes another model than `model`; shapes alone would not always show that.
    """
    if not (workdir / "config.json").exists():
        return []
    before = configs.from_json(workdir / "config.json")
    was, now = (_identity(m) for m in (build_model(before, model.num_classes), model))
    for field in now:
        if was.get(field) != now[field]:
            raise UserError(
                f"{workdir} holds a run of another model: its {field} is {was.get(field)!r}, this one's is "
                f"{now[field]!r}; use another --workdir, or the config it was started with"
            )
    was, now = _flat(before), _flat(config)
    return [
        f"config.{key} was {was.get(key)!r} so far, and is {now.get(key)!r} from here on"
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key) and not key.startswith("distributed.")
    ]


def _identity(model: Any) -> dict[str, Any]:
    """What makes a model the one it is: its class and fields, without those that change only how it runs."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    rates = ("dropout", "attn_dropout", "token_dropout", "drop_path", "decoder_dropout", "decoder_drop_path")
    how = ("unroll", "remat", "attention", "dtype", *rates, "parent", "name")
    return {"family": type(model).__name__, **{k: v for k, v in fields.items() if k not in how}, "join": model.joining}


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return flat
