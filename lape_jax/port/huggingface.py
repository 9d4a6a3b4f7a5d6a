"""What a directory of Hugging Face's transformers says of its weights: config.json, read and written.

The models are those that compute the same here: ViT, DeiT (with a distillation token, and a head for it if there was a
teacher), Swin. Their LayerNorms have an epsilon of 1e-12 in ViT and DeiT unless the config says otherwise; in Swin
those of the patch embedding and of the mergings have 1e-5 whatever it says.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import safetensors.numpy

from lape_jax.errors import UserError
from lape_jax.models.swin import Swin
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.port import foreign
from lape_jax.port.torch import to_torch

CONFIG, IMAGES, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.")
GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
WRITTEN_GELUS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
SWIN_EPS = 1e-5
# What a config leaves out if it is so.
_VIT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_VIT |= {"image_size": 224, "patch_size": 16, "num_channels": 3, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
_SWIN = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0}
_SWIN |= {"image_size": 224, "patch_size": 4, "num_channels": 3, "layer_norm_eps": SWIN_EPS, "hidden_act": "gelu"}
_SWIN |= {"use_absolute_embeddings": False}
DEFAULTS = {"vit": _VIT, "deit": _VIT, "swin": _SWIN}


def config_of(path: str | os.PathLike) -> dict[str, Any] | None:
    """The config.json beside the weights at `path`, here, if it is one of Hugging Face's for such a model; else None.

    What is on the hub is to be fetched before, once, by `lape_jax.port.hub.local`; likewise in `images`, `difference`.
    """
    place = Path(path)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        file = (place if place.is_dir() else place.parent) / CONFIG
        config = json.loads(file.read_text())
        if config.get("model_type") in DEFAULTS:
            return config
    return None


def settings(config: Mapping[str, Any]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The family of models that a config is for, and their settings.

    Raises:
        UserError: it says what no model here can be.
    """
    kind = config["model_type"]
    said = {**DEFAULTS[kind], **config}
    common = {
        "image_size": _size(said["image_size"]),
        "patch_size": _size(said["patch_size"]),
        "in_channels": said["num_channels"],
        "join": "default",
        "ln_eps": said["layer_norm_eps"],
    }
    if any("ForImageClassification" in name for name in said.get("architectures") or ()):
        common["num_classes"] = len(said.get("id2label") or range(said.get("num_labels", 2)))
    gelu = GELUS.get(said["hidden_act"])
    if gelu is None or (kind == "swin" and gelu != "erf"):
        raise UserError(f"{CONFIG}: hidden_act={said['hidden_act']!r} is not what a model here has: GELU")
    if kind == "swin":
        if said["layer_norm_eps"] != SWIN_EPS:
            raise UserError(
                f"{CONFIG}: layer_norm_eps={said['layer_norm_eps']:g} is that of some LayerNorms of a Swin, and others "
                f"have {SWIN_EPS:g} in transformers; here all have the same"
            )
        relative = position.RELATIVE
        own = {
            "width": said["embed_dim"],
            "depths": tuple(said["depths"]),
            "heads": tuple(said["num_heads"]),
            "window_size": said["window_size"],
            "mlp_ratio": float(said["mlp_ratio"]),
            "pe": f"{position.LEARNABLE}+{relative}" if said["use_absolute_embeddings"] else relative,
        }
        return Swin, {**common, **own}
    own = {
        "width": said["hidden_size"],
        "depth": said["num_hidden_layers"],
        "heads": said["num_attention_heads"],
        "mlp_ratio": said["intermediate_size"] / said["hidden_size"],
        "gelu": gelu,
        "pe": position.LEARNABLE,
        "distilled": kind == "deit",
    }
    if kind == "deit":
        own["dist_head"] = any("Teacher" in name for name in said.get("architectures") or ())
    return ViT, {**common, **own}


def images(path: str | os.PathLike) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images, as preprocessor_config.json beside the weights says; else ((), ())."""
    place = Path(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(((place if place.is_dir() else place.parent) / IMAGES).read_text())
        return tuple(map(float, said["image_mean"])), tuple(map(float, said["image_std"]))
    return (), ()


def classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes, in the order of the outputs; none if they are only numbered."""
    labels = config.get("id2label") or {}
    names = tuple(str(labels.get(str(i), "")) for i in range(len(labels)))
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def difference(path: str | os.PathLike, model: nn.Module) -> str:
    """What the config beside the weights says of arithmetic that `model` does otherwise, in a line; "" if nothing."""
    config = config_of(path)
    if config is None:
        return ""
    _, said = settings(config)
    said = {key: said[key] for key in ("ln_eps", "gelu") if key in said}
    other = {key: value for key, value in said.items() if getattr(model, key, value) != value}
    if not other:
        return ""
    theirs = ", ".join(f"{key}={value!r}" for key, value in other.items())
    ours = ", ".join(f"{key}={getattr(model, key)!r}" for key in other)
    return f"{CONFIG} says {theirs}, and the model computes with {ours}"


def contents(
    variables: Mapping[str, Any], model: nn.Module, metadata: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """The files of a directory that `from_pretrained` of transformers reads, by name.

    Args:
        metadata: what `lape_jax.port.about.write` says of the model, if that is known: the classes' names, and the
            images' mean and deviation.

    Raises:
        UserError: transformers has no model that computes what this one does.
    """
    kind = _kind(model)
    _check(model, kind)
    official = to_torch(variables, model)
    who = foreign.HF_SWIN if kind == "swin" else foreign.HF_VIT
    # Buffers that no file of version 5 has.
    weights = foreign.renamed({n: x for n, x in official.items() if not n.endswith((foreign.INDEX, "attn_mask"))}, who)
    metadata = metadata or {}
    names = json.loads(metadata.get("classes", "[]")) or [f"LABEL_{i}" for i in range(model.num_classes)]
    config = _config(model, kind, names)
    if config["architectures"][0].endswith("WithTeacher"):
        weights = {f"cls_{name}" if name.startswith("classifier.") else name: x for name, x in weights.items()}
    if model.num_classes:
        weights = {name if name.startswith(HEADS) else f"{kind}.{name}": array for name, array in weights.items()}
    files = {CONFIG: json.dumps(config, indent=2).encode(), WEIGHTS: safetensors.numpy.save(weights, {"format": "pt"})}
    if "mean" in metadata:
        height, width, _ = model.input_shape
        said = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": json.loads(metadata["mean"]),
            "image_std": json.loads(metadata["std"]),
        }
        files[IMAGES] = json.dumps(said, indent=2).encode()
    return files


def _kind(model: nn.Module) -> str:
    if type(model) is ViT:
        return "deit" if model.distilled else "vit"
    if type(model) is Swin:
        return "swin"
    raise UserError(f"a {type(model).__name__} has no counterpart in Hugging Face's transformers: ViTs and Swins have")


def _check(model: nn.Module, kind: str) -> None:
    """Raises UserError unless transformers' model computes what this one does."""
    needed: dict[str, Any] = {"joining": "default"}
    if kind == "swin":
        needed |= {"ln_eps": SWIN_EPS}
        if any(windows.size != model.window_size for windows in model.windows):
            raise UserError(f"window_size={model.window_size} is more than a stage has tokens in a row")
        if position.RELATIVE not in model.pe.split("+"):
            raise UserError(f"pe={model.pe!r}: transformers' Swin has a relative bias, so must the model have")
    else:
        needed |= {"pe": position.LEARNABLE, "pool": "token", "layer_scale": None, "registers": 0}
    for field, value in needed.items():
        if getattr(model, field) != value:
            name = "join" if field == "joining" else field
            raise UserError(
                f"{name}={getattr(model, field)!r}: transformers' {kind} has {value!r}, so must the model have"
            )


def _config(model: nn.Module, kind: str, names: list[str]) -> dict[str, Any]:
    """What config.json says of `model`, whose classes have these names."""
    class_name = {"vit": "ViT", "deit": "DeiT", "swin": "Swin"}[kind]
    task = "ForImageClassification" if model.num_classes else "Model"
    teacher = "WithTeacher" if kind == "deit" and model.num_classes and model.dist_head else ""
    said: dict[str, Any] = {
        "architectures": [f"{class_name}{task}{teacher}"],
        "model_type": kind,
        "image_size": _plain(model.image_size),
        "patch_size": _plain(model.patch_size),
        "num_channels": model.in_channels,
        "layer_norm_eps": model.ln_eps,
        "qkv_bias": True,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if kind == "swin":
        return said | {
            "embed_dim": model.width,
            "depths": list(model.depths),
            "num_heads": list(model.heads),
            "window_size": model.window_size,
            "mlp_ratio": model.mlp_ratio,
            "hidden_act": "gelu",
            "use_absolute_embeddings": position.parse_pe(model.pe)[0] is not None,
        }
    return said | {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "hidden_act": WRITTEN_GELUS[model.gelu],
    }


def _size(value: Any) -> int | tuple[int, int]:
    return tuple(value) if isinstance(value, list | tuple) else value


def _plain(value: int | tuple[int, int]) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value
