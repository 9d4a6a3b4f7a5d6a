"""From a config to the things a run is made of: model, data, optimiser. Training and evaluation share it."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lape_jax import models
from lape_jax.data import pipeline, resident
from lape_jax.data.sources import Source
from lape_jax.errors import UserError
from lape_jax.train import config as configs

# Settings of a model that change how it is computed, and not what.
_NUMERICS = ("unroll", "remat", "attention", "dtype")


def build_model(config: ConfigDict, num_classes: int) -> Any:
    """The model of `config.model`; image size, channels, type and classes come from the rest of the config and the data.

    Raises:
        UserError: `config.model` contradicts the data or cannot be built.
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
    return models.create(**{**implied, **given})


def evaluation_batches(config: ConfigDict, source: Source) -> Callable[[int], Iterable[dict]]:
    """The function batch size -> this host's part of every batch of an evaluation over `source`.

    A resident data set is decoded once, on the first call.
    """
    crop = {
        "size": config.data.image_size,
        "channels": config.data.channels,
        "crop_ratio": config.data.crop_ratio,
        "threads": config.data.threads,
    }
    if not config.data.resident:
        hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return lambda batch_size: pipeline.eval_batches(source, batch_size=batch_size, **crop, **hosts)
    load = functools.cache(lambda: resident.load(source, **crop))
    return lambda batch_size: resident.batches(load(), batch_size, jax.process_index(), jax.process_count())


def compare_with_workdir(config: ConfigDict, workdir: Path) -> list[str]:
    """How `config` differs from the one that the run in `workdir` has had so far, one line per key.

    Raises:
        UserError: it describes another model; shapes alone would not always show that.
    """
    if not (workdir / "config.json").exists():
        return []
    before, now = (_flat(c) for c in (configs.from_json(workdir / "config.json"), config))
    lines = []
    for key in sorted({*before, *now}):
        was, is_ = before.get(key), now.get(key)
        if was == is_:
            continue
        if key.startswith("model.") and key.removeprefix("model.") not in _NUMERICS:
            raise UserError(
                f"{workdir} holds a run of another model: its config.{key} is {was!r}, this one's is {is_!r}; "
                f"use another --workdir, or the config it was started with"
            )
        lines.append(f"config.{key} was {was!r} so far, and is {is_!r} from here on")
    return lines


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return flat
