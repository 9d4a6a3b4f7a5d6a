"""Names of Segmenter in PyTorch: those of rstrudel/segmenter, of MMSegmentation, and LaPE's for what it adds.

The encoder has the names of a ViT (vit.py) under `encoder.`. rstrudel's has a classifier's head that nothing asks:
it is dropped when read, and written as zeros.

MMSegmentation calls the same arrays as `MMSEG` says. Its last two matrices are linear layers, of which the linear
decoder's is a 1x1 convolution; with a mask decoder it has that convolution, too, though nothing asks it. Distillation
tokens, relative biases, PEGs and layer scales have no names there. For LaPE, whose Segmenter was not released, we keep
the names that the official code has elsewhere: `backbone.layers.{i}.pe_norm`, `backbone.pos_embed{i}`.

Source: rstrudel/segmenter, `segm/model/`; open-mmlab/mmsegmentation, `vit.py`, `segmenter_mask_head.py`,
`decode_head.py` and `tools/model_converters/vit2mmseg.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.errors import UserError
from lape_jax.port import vit
from lape_jax.port.entries import LINEAR, SAME, Entry
from lape_jax.port.params import first_few

ENCODER = "encoder."
DECODER = {
    **{f"decoder/{path}": (f"decoder.{name}", axes) for path, (name, axes) in vit.NAMES.items() if "blocks/" in path},
    "decoder/cls_emb": ("decoder.cls_emb", SAME),
    "decoder/proj_dec/kernel": ("decoder.proj_dec.weight", LINEAR),
    "decoder/proj_dec/bias": ("decoder.proj_dec.bias", SAME),
    "decoder/proj_patch/kernel": ("decoder.proj_patch", SAME),  # (in, out) there, too
    "decoder/proj_classes/kernel": ("decoder.proj_classes", SAME),
    "decoder/decoder_norm/scale": ("decoder.decoder_norm.weight", SAME),
    "decoder/decoder_norm/bias": ("decoder.decoder_norm.bias", SAME),
    "decoder/mask_norm/scale": ("decoder.mask_norm.weight", SAME),
    "decoder/mask_norm/bias": ("decoder.mask_norm.bias", SAME),
    "decoder/head/kernel": ("decoder.head.weight", LINEAR),
    "decoder/head/bias": ("decoder.head.bias", SAME),
}
HEADS, IMAGENET = ("head", "head_dist"), 1000  # those of the encoder, which has ImageNet's classes whatever it is for

# rstrudel's names of modules and arrays, and MMSegmentation's; `@` is the number of a block.
MODULES = {
    "encoder.patch_embed.proj": "backbone.patch_embed.projection",
    "encoder.norm": "backbone.ln1",
    "decoder.proj_dec": "decode_head.dec_proj",
    "decoder.decoder_norm": "decode_head.decoder_norm",
    "decoder.mask_norm": "decode_head.mask_norm",
    "decoder.head": "decode_head.conv_seg",
}
BLOCK = {
    "pe_norm.weight": "pe_norm.weight",
    "pe_norm.bias": "pe_norm.bias",
    "norm1.weight": "ln1.weight",
    "norm1.bias": "ln1.bias",
    "attn.qkv.weight": "attn.attn.in_proj_weight",
    "attn.qkv.bias": "attn.attn.in_proj_bias",
    "attn.proj.weight": "attn.attn.out_proj.weight",
    "attn.proj.bias": "attn.attn.out_proj.bias",
    "norm2.weight": "ln2.weight",
    "norm2.bias": "ln2.bias",
    "mlp.fc1.weight": "ffn.layers.0.0.weight",
    "mlp.fc1.bias": "ffn.layers.0.0.bias",
    "mlp.fc2.weight": "ffn.layers.1.weight",
    "mlp.fc2.bias": "ffn.layers.1.bias",
}
MMSEG = {
    "encoder.cls_token": "backbone.cls_token",
    "encoder.pos_embed": "backbone.pos_embed",
    "encoder.pos_embed@": "backbone.pos_embed@",
    "decoder.cls_emb": "decode_head.cls_emb",
    "decoder.proj_patch": "decode_head.patch_proj.weight",
    "decoder.proj_classes": "decode_head.classes_proj.weight",
    **{f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in MODULES.items() for leaf in ("weight", "bias")},
    **{f"encoder.blocks.@.{ours}": f"backbone.layers.@.{theirs}" for ours, theirs in BLOCK.items()},
    **{f"decoder.blocks.@.{ours}": f"decode_head.layers.@.{theirs}" for ours, theirs in BLOCK.items()},
}
RSTRUDEL = {theirs: ours for ours, theirs in MMSEG.items()}
CONVOLUTION, CLASS_TOKENS = "decode_head.conv_seg.", "decode_head.cls_emb"


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    encoder = {path: shape for path, shape in shapes.items() if not path.startswith("decoder/")}
    decoder = {path: shape for path, shape in shapes.items() if path not in encoder}
    found = [entry._replace(names=tuple(ENCODER + name for name in entry.names)) for entry in vit.entries(encoder)]
    return found + vit.entries(decoder, DECODER, "Segmenter")


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What is in the state dict beside the variables: see vit.py, and the head of the encoder."""
    found = vit.constants(model, dtype)
    for head in HEADS[: 1 + model.distilled]:
        found |= {f"{head}.weight": np.zeros((IMAGENET, model.width), dtype), f"{head}.bias": np.zeros(IMAGENET, dtype)}
    return {ENCODER + name: array for name, array in found.items()}


def verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array` is the model's `constant`, or anything in place of the encoder's head."""
    if name.rpartition(".")[0].rpartition(".")[2] not in HEADS:
        vit.verify(name, array, constant)


def official(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """`arrays` by rstrudel's names, if their names are MMSegmentation's (of which some may not be known)."""
    if not any(name.startswith(("backbone.", "decode_head.")) for name in arrays):
        return arrays
    unused = CLASS_TOKENS in arrays
    kept = {name: array for name, array in arrays.items() if not (unused and name.startswith(CONVOLUTION))}
    return {_renamed(name, RSTRUDEL) or name: _reshaped(name, array) for name, array in kept.items()}


def aliases() -> set[str]:
    """MMSegmentation's names, # for numbers."""
    return {name.replace("@", "#") for name in RSTRUDEL}


def to_mmseg(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict in rstrudel's names, as `to_torch` makes it, in MMSegmentation's.

    Raises:
        UserError: there is something in it that has no name there.
    """
    unused = tuple(f"{ENCODER}{head}." for head in HEADS)
    given = {name: array for name, array in state_dict.items() if not name.startswith(unused)}
    names = {name: _renamed(name, MMSEG) for name in given}
    if nameless := [name for name, theirs in names.items() if theirs is None]:
        raise UserError(f"MMSegmentation's Segmenter has nothing like {first_few(nameless)}")
    found = {names[name]: array for name, array in given.items()}
    if CLASS_TOKENS in found:
        _, classes, width = found[CLASS_TOKENS].shape
        zeros = np.zeros((classes, width), found[CLASS_TOKENS].dtype)
        found |= {f"{CONVOLUTION}weight": zeros, f"{CONVOLUTION}bias": zeros[:, 0]}
    for name in ("patch_proj", "classes_proj"):
        if (path := f"decode_head.{name}.weight") in found:
            found[path] = np.array(found[path].T, order="C")
    found[f"{CONVOLUTION}weight"] = found[f"{CONVOLUTION}weight"][:, :, None, None]
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """What `names` has for `name`, with the number of its block; None if that is not there."""
    number = re.search(r"(?<=\.)\d+(?=\.)|\d+$", name)
    pattern = name if number is None else f"{name[: number.start()]}@{name[number.end() :]}"
    return names[pattern].replace("@", number[0] if number else "") if pattern in names else None


def _reshaped(name: str, array: Any) -> Any:
    """An array of MMSegmentation's in the shape that rstrudel has; as it is if it has not that many axes."""
    if name in ("decode_head.patch_proj.weight", "decode_head.classes_proj.weight") and len(array.shape) == 2:
        return array.T
    if name == f"{CONVOLUTION}weight" and array.shape[2:] == (1, 1):
        return array[:, :, 0, 0]
    return array
