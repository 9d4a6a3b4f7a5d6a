"""State dicts in the names of Hugging Face's transformers and of torchvision: into official ones, and back.

Official names are those of DeiT, LaPE and Swin, which the tables of a family know (vit.py, swin.py). Whatever is before
the names in a file (`module.`, `student.`) stays there; `vit.`, `deit.` and `swin.`, which Hugging Face's classifiers
put before their backbones, are taken off. What a table does not name keeps its name, and so is refused where it belongs
to no model of ours.

In the tables {i} and {s} are numbers of blocks and stages, and `.*` is both `.weight` and `.bias`.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lape_jax.errors import UserError
from lape_jax.port.params import as_array, copy, first_few

QKV = ("query", "key", "value")  # rows of the official matrix, in this order
BIAS, INDEX = "relative_position_bias_table", "relative_position_index"
STAGES = 4  # of a torchvision Swin, whose numbers count stages and what lies between them
Table = dict[str, str | tuple[str, ...]]  # official names -> theirs, or those of its rows


class Convention(NamedTuple):
    """Somebody's names.

    Attributes:
        who: whose.
        sign: what a name of theirs looks like.
        names: those that are written.
        also: (official name, theirs) that are read besides.
    """

    who: str
    sign: str
    names: Table
    also: tuple[tuple[str, str | tuple[str, ...]], ...]


_HF_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_SAME = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
_HF_MEMORY = {"norm1": "layernorm_before", "attn.proj": "attention.o_proj", "norm2": "layernorm_after"}
_HF_MEMORY |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
HF_VIT = Convention(
    "Hugging Face's ViT",
    r"(^|\.)embeddings\.cls_token$",
    {
        "cls_token": "embeddings.cls_token",
        "dist_token": "embeddings.distillation_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
        "blocks.{i}.attn.qkv.*": tuple(f"encoder.layer.{{i}}.attention.attention.{part}.*" for part in QKV),
        **{f"blocks.{{i}}.{ours}.*": f"encoder.layer.{{i}}.{theirs}.*" for ours, theirs in _HF_BLOCK.items()},
        "norm.*": "layernorm.*",
        "head.*": "classifier.*",
        "head_dist.*": "distillation_classifier.*",
    },
    (
        ("head.*", "cls_classifier.*"),
        ("pooler.dense.*", "pooler.dense.*"),
        # in the memory of version 5 of transformers
        ("blocks.{i}.attn.qkv.*", tuple(f"layers.{{i}}.attention.{part}_proj.*" for part in "qkv")),
        *((f"blocks.{{i}}.{ours}.*", f"layers.{{i}}.{theirs}.*") for ours, theirs in _HF_MEMORY.items()),
        # of DINOv2
        ("reg_token", "embeddings.register_tokens"),
        ("mask_token", "embeddings.mask_token"),
        *((f"blocks.{{i}}.{same}.*", f"encoder.layer.{{i}}.{same}.*") for same in _SAME),
        *((f"blocks.{{i}}.gamma_{n}", f"encoder.layer.{{i}}.layer_scale{n}.lambda1") for n in (1, 2)),
    ),
)
_STAGE = "layers.{s}.blocks.{i}"
HF_SWIN = Convention(
    "Hugging Face's Swin",
    r"(^|\.)encoder\.layers\.\d+\.blocks\.\d+\.(attention|layernorm_before)\.",
    {
        "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
        "patch_embed.norm.*": "embeddings.norm.*",
        "absolute_pos_embed": "embeddings.position_embeddings",
        f"{_STAGE}.attn.qkv.*": tuple(f"encoder.{_STAGE}.attention.self.{part}.*" for part in QKV),
        f"{_STAGE}.attn.{BIAS}": f"encoder.{_STAGE}.attention.self.{BIAS}",
        **{f"{_STAGE}.{ours}.*": f"encoder.{_STAGE}.{theirs}.*" for ours, theirs in _HF_BLOCK.items()},
        "layers.{s}.downsample.reduction.weight": "encoder.layers.{s}.downsample.reduction.weight",
        "layers.{s}.downsample.norm.*": "encoder.layers.{s}.downsample.norm.*",
        "norm.*": "layernorm.*",
        "head.*": "classifier.*",
    },
    (
        ("pooler.dense.*", "pooler.dense.*"),
        # of version 4 of transformers
        (f"{_STAGE}.attn.{INDEX}", f"encoder.{_STAGE}.attention.self.{INDEX}"),
        # in the memory of version 5
        (f"{_STAGE}.attn.qkv.*", tuple(f"encoder.{_STAGE}.attention.{part}_proj.*" for part in "qkv")),
        (f"{_STAGE}.attn.{BIAS}", f"encoder.{_STAGE}.attention.relative_position_bias.{BIAS}"),
        *((f"{_STAGE}.{ours}.*", f"encoder.{_STAGE}.{theirs}.*") for ours, theirs in _HF_MEMORY.items()),
    ),
)
_TV_LAYER = "encoder.layers.encoder_layer_{i}"
TV_VIT = Convention(
    "torchvision's ViT",
    r"(^|\.)encoder\.layers\.encoder_layer_\d+\.",
    {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.*": "conv_proj.*",
        "blocks.{i}.norm1.*": f"{_TV_LAYER}.ln_1.*",
        "blocks.{i}.attn.qkv.weight": f"{_TV_LAYER}.self_attention.in_proj_weight",
        "blocks.{i}.attn.qkv.bias": f"{_TV_LAYER}.self_attention.in_proj_bias",
        "blocks.{i}.attn.proj.*": f"{_TV_LAYER}.self_attention.out_proj.*",
        "blocks.{i}.norm2.*": f"{_TV_LAYER}.ln_2.*",
        "blocks.{i}.mlp.fc1.*": f"{_TV_LAYER}.mlp.0.*",
        "blocks.{i}.mlp.fc2.*": f"{_TV_LAYER}.mlp.3.*",
        "norm.*": "encoder.ln.*",
        "head.*": "heads.head.*",
    },
    (  # of older torchvisions
        ("blocks.{i}.mlp.fc1.*", f"{_TV_LAYER}.mlp.linear_1.*"),
        ("blocks.{i}.mlp.fc2.*", f"{_TV_LAYER}.mlp.linear_2.*"),
    ),
)
_TV_BLOCK = {
    **{f"{same}.*": f"{same}.*" for same in ("norm1", "attn.qkv", "attn.proj", "norm2")},
    **{f"attn.{same}": f"attn.{same}" for same in (BIAS, INDEX)},
    "mlp.fc1.*": "mlp.0.*",
    "mlp.fc2.*": "mlp.3.*",
}
_TV_STAGES = {
    f"layers.{s}.blocks.{{i}}.{ours}": f"features.{2 * s + 1}.{{i}}.{theirs}"
    for s in range(STAGES)
    for ours, theirs in _TV_BLOCK.items()
}
_TV_MERGING = {
    f"layers.{s}.downsample.{same}": f"features.{2 * s + 2}.{same}"
    for s in range(STAGES)
    for same in ("reduction.weight", "norm.*")
}
TV_SWIN = Convention(
    "torchvision's Swin",
    r"(^|\.)features\.\d+\.\d+\.attn\.",
    {
        "patch_embed.proj.*": "features.0.0.*",
        "patch_embed.norm.*": "features.0.2.*",
        **_TV_STAGES,
        **_TV_MERGING,
        "norm.*": "norm.*",
        "head.*": "head.*",
    },
    (),
)
CONVENTIONS = (HF_VIT, HF_SWIN, TV_VIT, TV_SWIN)


def official(arrays: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], str]:
    """`arrays` by official names, and whose names they had: "", if they are as they were.

    Matrices and biases of query, key and value become one; if not all three are there, they keep their names.

    Raises:
        UserError: two arrays for one name, or a query, key and value of different shapes or types.
    """
    names = [name for name in arrays if isinstance(name, str)]
    who = next((one.who for one in CONVENTIONS if any(re.search(one.sign, name) for name in names)), "")
    if not who:
        return arrays, ""
    found: dict[Any, Any] = {}
    rows: dict[str, dict[int, str]] = {}
    for name, array in arrays.items():
        ours, part = _read(name, who) if isinstance(name, str) else (name, None)
        if part is not None:
            rows.setdefault(ours, {})[part] = name
        elif ours in found:
            raise UserError(f"the weights have {ours} twice, once as {name}")
        else:
            found[ours] = _square(array) if str(ours).endswith(INDEX) else array
    for ours, parts in rows.items():
        given = {name: arrays[name] for _, name in sorted(parts.items())}
        found |= {ours: _joined(given)} if len(parts) == len(QKV) else given
    return found, who


def renamed(state_dict: Mapping[str, np.ndarray], who: Convention) -> dict[str, np.ndarray]:
    """A state dict of official names in those of `who`.

    Raises:
        UserError: there is something in it that has no name there.
    """
    theirs = {name: _written(name, who.who) for name in state_dict}
    if nameless := [name for name, names in theirs.items() if not names]:
        raise UserError(f"{who.who} has nothing like {first_few(nameless)}")
    found = {}
    for name, names in theirs.items():
        array = state_dict[name]
        if who is TV_SWIN and name.endswith(INDEX):
            array = array.reshape(-1)
        found |= {one: copy(part) for one, part in zip(names, np.split(array, len(names)), strict=True)}
    return found


@functools.cache
def _readers(who: str) -> list[tuple[re.Pattern, str, int | None]]:
    """What fits each name of theirs, behind whatever; the official name, and which rows of it they are."""
    names, also = next((one.names, one.also) for one in CONVENTIONS if one.who == who)
    rows = []
    for ours, theirs in [*names.items(), *also]:
        several = enumerate(theirs) if isinstance(theirs, tuple) else [(None, theirs)]
        rows += [(one, ours, part) for part, one in several]
    before = r"(?P<before>(?:.*?\.)??)(?:(?:vit|deit|swin)\.)?"
    return [
        (re.compile(before + _pattern(one)), other, part)
        for theirs, ours, part in rows
        for other, one in _leaves(ours, theirs)
    ]


@functools.cache
def _writers(who: str) -> list[tuple[re.Pattern, tuple[str, ...]]]:
    """What fits each official name, and theirs: one, or three of its rows."""
    names = next(one.names for one in CONVENTIONS if one.who == who)
    found = []
    for ours, theirs in names.items():
        several = [_leaves(ours, one) for one in ((theirs,) if isinstance(theirs, str) else theirs)]
        for pairs in zip(*several, strict=True):
            found.append((re.compile(_pattern(pairs[0][0])), tuple(one for _, one in pairs)))
    return found


def _read(name: str, who: str) -> tuple[str, int | None]:
    """The official name of theirs, or itself; and which rows of it they are, if not all."""
    for pattern, ours, part in _readers(who):
        if match := pattern.fullmatch(name):
            numbers = match.groupdict()
            return numbers.pop("before") + ours.format(**numbers), part
    return name, None


def _written(name: str, who: str) -> tuple[str, ...]:
    """Theirs of the official name; none if they have none."""
    for pattern, theirs in _writers(who):
        if match := pattern.fullmatch(name):
            return tuple(one.format(**match.groupdict()) for one in theirs)
    return ()


def _leaves(ours: str, theirs: str) -> list[tuple[str, str]]:
    """The two names for each of what `.*` stands for."""
    leaves = ("weight", "bias") if ours.endswith(".*") else ("",)
    return [(ours.replace("*", leaf), theirs.replace("*", leaf)) for leaf in leaves]


def _pattern(template: str) -> str:
    """What fits the `template`, with its numbers as groups."""
    return re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d{1,6})", re.escape(template))


def _joined(parts: Mapping[str, Any]) -> np.ndarray:
    """The rows that `parts` are, one after the other."""
    given = [as_array(name, array) for name, array in parts.items()]
    if len({(array.dtype, array.shape) for array in given}) > 1:
        raise UserError(f"{', '.join(parts)} have different shapes or types, and are one array here")
    return np.concatenate(given)


def _square(index: Any) -> Any:
    """The index of a relative bias with an axis for queries and one for keys."""
    side = math.isqrt(math.prod(getattr(index, "shape", ())))
    return index.reshape(side, side) if getattr(index, "shape", ()) == (side * side,) else index
