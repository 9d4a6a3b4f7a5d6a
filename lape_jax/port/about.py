"""What a file of weights says of itself, or a config beside it: which model, classes and images."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import safetensors

from lape_jax import models
from lape_jax.models.swin import Swin
from lape_jax.port import hub, huggingface

# Settings that change how a model runs or trains, and not what it is.
HOW = ("unroll", "remat", "attention", "dtype", "dropout", "attn_dropout", "token_dropout", "drop_path")
HOW += ("decoder_dropout", "decoder_drop_path", "parent", "name")
_PLAIN = (bool, int, float, str, tuple, type(None))


class About(NamedTuple):
    """What is known of weights beside them.

    Attributes:
        model: the name of the model, see `lape_jax.models.create`.
        settings: attributes of the model as far as they are plain values, without those that only say how it runs.
        channels: how many channels images have.
        mean, std: that images, scaled to [0, 1], are normalised by; () if that is not known.
        classes: names, in the order of the outputs; () if they are not known.
    """

    model: str
    settings: dict[str, Any]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def write(name: str, model: nn.Module, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]) -> dict:
    """That of a model, as texts by name for a `.safetensors` file: numbers and lists as JSON."""
    height, width, channels = model.input_shape
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    settings = {
        key: value if isinstance(value, _PLAIN) else str(value)
        for key, value in fields.items()
        if key not in ("parent", "name")
    }
    values: dict[str, Any] = {
        "model": name,
        **({"join": model.joining, "pe": model.pe} if hasattr(model, "joining") else {}),
        "image_size": [height, width],
        "channels": channels,
        "mean": list(mean),
        "std": list(std),
        "num_classes": model.num_classes,
        "classes": list(classes),
        "settings": settings,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def read(path: str | Path) -> About | None:
    """What the file at `path` says of itself, or the config.json beside it, if that is one of Hugging Face's.

    None if it is neither a safetensors file of ours nor beside such a config, or says nothing.

    Raises:
        UserError: it is on the hub and cannot be had, or the config is of something that no model here computes.
    """
    path = Path(hub.local(path)).expanduser()
    return (_ours(path) if path.is_file() else None) or _hugging_face(path)


def _hugging_face(path: Path) -> About | None:
    config = huggingface.config_of(path)
    if config is None:
        return None
    family, settings = huggingface.settings(config)
    # The model of that family which has most of the settings.
    names = {
        name: len(sizes.items() & settings.items())
        for name, (kind, sizes) in models.VARIANTS.items()
        if kind is family and sizes.items() <= settings.items()
    }
    name = max(names, key=names.get, default="swin_t" if family is Swin else "deit_b")
    mean, std = huggingface.images(path)
    return About(name, settings, settings["in_channels"], mean, std, huggingface.classes(config))


def _ours(path: Path) -> About | None:
    with contextlib.suppress(safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError):
        with safetensors.safe_open(path, framework="numpy") as file:
            texts = dict(file.metadata() or {})
        settings = {key: _tuples(value) for key, value in json.loads(texts["settings"]).items() if key not in HOW}
        mean, std, classes = (tuple(json.loads(texts[key])) for key in ("mean", "std", "classes"))
        return About(texts["model"], settings, int(json.loads(texts["channels"])), mean, std, classes)
    return None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
