"""From a config to the things a run is made of: model, update, state. Training and evaluation share it."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lape_jax import models, tasks
from lape_jax.config import reading, rules
from lape_jax.config.schema import HOW
from lape_jax.data import order
from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.nn.join import PUBLISHED
from lape_jax.tasks import config as configs
from lape_jax.train import optim
from lape_jax.train import state as states

# Where those attributes of a model come from that config.model need not have.
_ORIGINS = {
    "num_classes": "the data",
    "image_size": "config.data.image_size",
    "in_channels": "config.data.channels",
    "dtype": "config.dtype",
}


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
    given = {key: value for key, value in config.model.to_dict().items() if value != "auto"}  # which is the default
    for key, value in implied.items():
        if given.get(key, value) != value:
            shown = value.name if key == "dtype" else value
            raise UserError(f"config.model.{key} is {given[key]!r}, but by {_ORIGINS[key]} it is {shown}: leave it out")
    with _keys_named(config):
        model = models.create(**{**implied, **given})
    tasks.of(config).check_answers(config, model)
    return model


@contextlib.contextmanager
def _keys_named(config: ConfigDict) -> Iterator[None]:
    """Says of an error about a model's attributes that they are keys of config.model, or where else they come from."""
    try:
        yield
    except UserError as error:
        implied = [key for key in _ORIGINS if key not in config.model and re.search(rf"\b{key}=", str(error))]
        origins = "".join(f"; {key} comes from {_ORIGINS[key]}" for key in implied)
        raise UserError(f"config.model: {error}{origins}") from error


@contextlib.contextmanager
def compiling(config: ConfigDict) -> Iterator[None]:
    """Says in a line what a compiler refuses of a step, where settings bear on it; memory is the command's to explain.

    Raises:
        UserError: the devices, or what compiles for them, cannot do what was asked for.
    """
    try:
        yield
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        # XLA without a way to do something in a fixed order calls that an internal error.
        refused = r"UNIMPLEMENTED|INVALID_ARGUMENT" + ("|INTERNAL" if config.deterministic else "")
        if isinstance(error, jax.errors.JaxRuntimeError) and not re.match(refused, str(error)):
            raise
        set_to = ", ".join(f"--config.{key}={rules.get(config, key)}" for key in (*HOW, "dtype", "deterministic"))
        raise UserError(
            f"these devices cannot make a step with {set_to}: {str(error).strip().partition(chr(10))[0][:300]}"
        ) from error


def param_shapes(config: ConfigDict, model: Any) -> dict:
    """`model.param_shapes()`; raises UserError with the key to change if it cannot run on these devices."""
    with _keys_named(config):
        return model.param_shapes()


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
    task = tasks.of(config)
    augment, loss = task.augmentation(config, model, mesh), task.loss(config, model, teacher)
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
    any_rate = optax.constant_schedule(0.0)  # only the shapes of the optimiser's state matter
    tx = optim.make(config.optimizer, param_shapes(config, model), any_rate, model.no_weight_decay)
    return states.abstract(states.initialiser(model, tx, config.ema_decay > 0, tasks.of(config)), mesh, strategies)


def check_training(config: ConfigDict, model: Any) -> None:
    """Raises UserError if the model is folded or cannot learn the task, or where clipping would stop all learning.

    The last: the class row of `sincos_2d` is zero, and so is its PE as long as the biases of the PE's LayerNorms are:
    each of them then multiplies the gradient of those biases by 1/sqrt(eps), and the clipped rest of the gradient is
    nothing.
    """
    tasks.of(config).check(config, model)
    if not model.method.trainable:
        raise UserError(
            f"config.model.join={model.joining!r} is what a trained model becomes for inference (lape_jax.port.fold), "
            f"and not trained itself: train with {PUBLISHED!r}"
        )
    flat_row = (
        model.pe.startswith(position.SINCOS_2D) and model.num_prefix_tokens > model.no_embed_tokens + model.unused_rows
    )
    amplified = model.method.serial and model.pe_norm == "layernorm" and model.depth > 1
    if config.optimizer.clip_norm and flat_row and amplified:
        raise UserError(
            f"config.optimizer.clip_norm cannot be used with pe='sincos_2d' and join={model.joining!r}, where the "
            "gradient of the PE biases starts out 1000 times larger in each layer and clipping would stop learning: "
            "set it to 0"
        )


def batch_indices(config: ConfigDict, size: int, step: int, seed: int) -> np.ndarray:
    """The examples of a step's batch, of so many; `seed` orders them."""
    return dataclasses.replace(order.Order.of(config), seed=seed).indices(step, size)


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
    was, now = reading.flat(before), reading.flat(config)
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
