"""Parameters of google-research/big_vision: its flat, '/'-joined names of all times, and those of our ViTs.

A file of big_vision is an `.npz` whose names are paths in a tree of parameters. They may lie under `params/` or
`opt/target/`, beside an optimiser's state, and under `img/`, beside a text model; blocks may be stacked on a leading
axis (`Transformer/encoderblock/...`) or apart (`Transformer/encoderblock_0/...`); bfloat16 is stored as two opaque
bytes. In files from before 2022 (AugReg) some names differ, and the position table has a row for the class token.

Here `canonical` names are those of today, of the image model alone, with stacked blocks.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lape_jax.errors import UserError
from lape_jax.models.big_vision import BigVisionViT
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.nn.join import BASELINE, JOINS
from lape_jax.port.params import as_array, check, copy, first_few, shapes, to_flat, unflatten

PREFIXES = ("params/", "opt/target/")
IMAGES = "img"  # the image model's subtree where there is a text model, too
BLOCK, STACK = re.compile(r"Transformer/encoderblock_(\d{1,6})/(.*)"), "Transformer/encoderblock/"
TABLE, CLS = "pos_embedding", "cls"
# What has had another name.
OLD = {
    "Transformer/posembed_input/pos_embedding": TABLE,
    "Transformer/pos_embedding": TABLE,
    "probe": "MAPHead_0/probe",
}
OLD_MODULES = {
    r"(Transformer/encoderblock(_\d+)?)/LayerNorm_2/": r"\1/LayerNorm_1/",
    r"(Transformer/encoderblock(_\d+)?)/MultiHeadDotProductAttention_1/": r"\1/MultiHeadDotProductAttention_0/",
    r"(Transformer/encoderblock(_\d+)?)/MlpBlock_3/": r"\1/MlpBlock_0/",
    r"^(MlpBlock_0|MultiHeadDotProductAttention_0|LayerNorm_0)/": r"MAPHead_0/\1/",
}
ATTENTION = f"{STACK}MultiHeadDotProductAttention_0/"
# Our ViT's parameters that are the same array under another name; the others are in `_to_theirs` and its inverse.
NAMES = {
    "patch_embed/proj/kernel": "embedding/kernel",
    "patch_embed/proj/bias": "embedding/bias",
    "cls_token": CLS,
    **{
        f"blocks/{ours}/{leaf}": f"{STACK}{theirs}/{leaf}"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("pe_norm", "pe_norm"), ("norm2", "LayerNorm_1"))
        for leaf in ("scale", "bias")
    },
    **{
        f"blocks/mlp/{ours}/{leaf}": f"{STACK}MlpBlock_0/{theirs}/{leaf}"
        for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1"))
        for leaf in ("kernel", "bias")
    },
    "blocks/attn/proj/bias": f"{ATTENTION}out/bias",
    "norm/scale": "Transformer/encoder_norm/scale",
    "norm/bias": "Transformer/encoder_norm/bias",
    "head/kernel": "head/kernel",
    "head/bias": "head/bias",
}
QKV = ("query", "key", "value")


def from_big_vision(flat: Mapping[str, Any], model: nn.Module, absent: Collection[str] = ()) -> dict:
    """The variables `{"params": ...}` of `model` with the weights of a big_vision checkpoint.

    Images must come to the model in [-1, 1]. Entries beside the image model's parameters (optimiser state, text model)
    are not looked at.

    Args:
        flat: arrays by '/'-joined name, or the tree of them, of any layout and time (see the module).
        model: a `lape_jax.models.big_vision.BigVisionViT`, or a `lape_jax.models.vit.ViT` that computes the same: with
            gelu="tanh". Every parameter must be there, and nothing else may be.
        absent: paths of parameters that are not there.

    Returns:
        NumPy arrays of the types they came in. They have the same bits, but where an old row of the position table for
        the class token is added to that token, which only join="default" without `cls_pe` allows; and the ViT has a row
        of zeros for a class token that has none in the file, which LaPE, as it normalises the row, does not allow.

    Raises:
        UserError: the model does not compute what big_vision does; or names, shapes or types do not fit.
    """
    _check_model(model)
    found = canonical(flat)
    if isinstance(model, BigVisionViT):
        if model.no_embed_tokens and TABLE in found and found[TABLE].shape[1] == 1 + np.prod(model.grid):
            found = without_class_row(found, model.joining)
        if not model.scan:
            found = unstack(found)
        check(found, shapes(model, absent), "the checkpoint")
        return unflatten({path: copy(value) for path, value in found.items()})
    return unflatten(_to_ours(found, model, absent))


def to_big_vision(variables: Mapping[str, Any], model: nn.Module, scan: bool = False) -> dict[str, np.ndarray]:
    """The flat dict of a big_vision checkpoint, bare names of today: the inverse of `from_big_vision`, bit for bit.

    The position table of a `ViT` keeps its row for the class token, as in old files: big_vision adds it to the class
    token when it loads them.

    Args:
        scan: whether blocks are stacked, as big_vision has them with `scan=True`; else they are apart, as its models
            read them by default. (Where our model has them does not matter.)

    Raises:
        UserError: the model does not compute what big_vision does, or `variables` are not its variables.
    """
    _check_model(model)
    flat = to_flat(variables, model)
    found = canonical(flat) if isinstance(model, BigVisionViT) else _to_theirs(flat, model)
    return {name: copy(value) for name, value in (found if scan else unstack(found)).items()}


def is_big_vision(names: Any) -> bool:
    """Whether these are names of a big_vision checkpoint."""
    return any(re.search(r"(^|/)Transformer/encoderblock", name) for name in names)


def stored_shapes(flat: Mapping[str, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes, as they would be here, of the model's parameters that a checkpoint has, whatever they are in `model`."""
    found = canonical(flat)
    ours = {theirs: path for path, theirs in NAMES.items()} if type(model) is ViT else {name: name for name in found}
    stored = {ours[name]: array.shape for name, array in found.items() if name in ours}
    if TABLE in found:
        layers, *shape = found[TABLE].shape
        stored["pos_embed"] = tuple(shape) if layers == 1 else (layers, *shape)
    return stored


def canonical(arrays: Mapping[str, Any], tower: str | None = None) -> dict[str, np.ndarray]:
    """A checkpoint's image model, or what is under `tower`, by canonical name.

    Raises:
        UserError: two arrays for one name, or blocks that do not stack.
    """
    if any(isinstance(value, Mapping) for value in arrays.values()):
        arrays = flatten_dict(dict(arrays), sep="/")
    arrays = next((found for prefix in PREFIXES if (found := _under(prefix, arrays))), arrays)
    arrays = _under(f"{tower or IMAGES}/", arrays) or ({} if tower else arrays)
    found: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        array = as_array(name, value)
        renamed = OLD.get(name, name)
        for pattern, replacement in OLD_MODULES.items():
            renamed = re.sub(pattern, replacement, renamed)
        if renamed in found:
            raise UserError(f"the checkpoint has {renamed} twice, once as {name}")
        found[renamed] = array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array
    return _stack(found)


def unstack(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical arrays with the blocks apart."""
    result = {}
    for name, value in found.items():
        if not name.startswith(STACK):
            result[name] = value
            continue
        leaf = name.removeprefix(STACK)
        result |= {f"{STACK[:-1]}_{layer}/{leaf}": np.asarray(part) for layer, part in enumerate(value)}
    return result


def without_class_row(found: Mapping[str, np.ndarray], joining: str) -> dict[str, np.ndarray]:
    """`found` whose position table loses its first row to the class token.

    Raises:
        UserError: the joining does not simply add the table to the tokens, once.
    """
    if not JOINS[joining].stem_only:
        raise UserError(
            f"the file's position table has a row for the class token, which join={joining!r} does not add to it once "
            f"and for all: build the model with cls_pe=True"
        )
    table = found[TABLE]
    cls = {CLS: found[CLS] + table[:, :1]} if CLS in found else {}
    return {**found, **cls, TABLE: table[:, 1:]}


def _check_model(model: nn.Module) -> None:
    """Raises UserError unless `model` computes what big_vision would with the same numbers."""
    if type(model) not in (ViT, BigVisionViT):
        raise UserError(f"a {type(model).__name__} has no counterpart in big_vision: only ViTs like DeiT's have")
    needed = {"gelu": "tanh", "ln_eps": 1e-6, "layer_scale": None, "distilled": False, "registers": 0}
    for field, value in needed.items():
        if getattr(model, field) != value:
            raise UserError(
                f"{field}={getattr(model, field)!r}: big_vision's ViT has {value!r}, so must the model have"
            )
    if model.pe not in (position.LEARNABLE, position.SINCOS_2D_MOCO, position.NONE) or not model.method.trainable:
        raise UserError(f"pe={model.pe!r} with join={model.joining!r} has no counterpart in big_vision")
    if model.pool == "seq":
        raise UserError("pool='seq' has no counterpart in big_vision")


def _under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _stack(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result, blocks = {}, {}
    for name, value in found.items():
        match = BLOCK.fullmatch(name)
        if match:
            blocks.setdefault(match[2], {})[int(match[1])] = value
        else:
            result[name] = value
    numbers = {layer for layers in blocks.values() for layer in layers}
    depth = 1 + max(numbers, default=0)
    if depth > 2 * len(numbers) + 1:  # made to have us list what there is not
        raise UserError(f"the checkpoint has {len(numbers)} blocks, and the last one is number {depth - 1}")
    lacking = [f"{STACK[:-1]}_{i}/{leaf}" for leaf, layers in blocks.items() for i in range(depth) if i not in layers]
    if lacking:
        raise UserError(f"the checkpoint lacks {first_few(sorted(lacking))}")
    for leaf, layers in blocks.items():
        kinds = {(layer.shape, str(layer.dtype)) for layer in layers.values()}
        if len(kinds) > 1 or STACK + leaf in result:
            raise UserError(f"the blocks' arrays {leaf} are not all of one shape and type, or there twice")
        result[STACK + leaf] = np.stack([layers[layer] for layer in range(depth)])
    return result


def _to_ours(found: dict[str, np.ndarray], model: ViT, absent: Collection[str]) -> dict[str, np.ndarray]:
    """Our ViT's parameters by path."""
    expected, found = shapes(model, absent), _with_class_row(found, model)
    # What there would be for parameters of these shapes.
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in expected.items()}
    check(found, {name: value.shape for name, value in _to_theirs(zeros, model).items()}, "the checkpoint")
    ours = {path: copy(found[name]) for path, name in NAMES.items() if path in expected}
    for leaf in ("kernel", "bias"):
        parts = [found[f"{ATTENTION}{part}/{leaf}"] for part in QKV]
        if len({part.dtype for part in parts}) > 1:
            raise UserError(f"the {leaf}s of query, key and value have different types, and are one array here")
        path = f"blocks/attn/qkv/{leaf}"
        shape = (*expected[path][:-1], model.width)
        ours[path] = np.concatenate([part.reshape(shape) for part in parts], axis=-1)
    path = "blocks/attn/proj/kernel"
    ours[path] = copy(found[f"{ATTENTION}out/kernel"].reshape(expected[path]))
    if "pos_embed" in expected:
        ours["pos_embed"] = copy(found[TABLE].reshape(expected["pos_embed"]))
    return ours


def _to_theirs(flat: Mapping[str, np.ndarray], model: ViT) -> dict[str, np.ndarray]:
    """The inverse of `_to_ours`."""
    nameless = [path for path in flat if path not in NAMES and not re.fullmatch("pos_embed|blocks/attn/.*", path)]
    if nameless:
        raise UserError(f"big_vision's ViT has nothing like {first_few(nameless)}")
    theirs = {NAMES[path]: value for path, value in flat.items() if path in NAMES}
    heads = (model.heads, model.width // model.heads)
    for leaf in ("kernel", "bias"):
        parts = np.split(flat[f"blocks/attn/qkv/{leaf}"], 3, axis=-1)
        for name, part in zip(QKV, parts, strict=True):
            theirs[f"{ATTENTION}{name}/{leaf}"] = part.reshape(*part.shape[:-1], *heads)
    theirs[f"{ATTENTION}out/kernel"] = flat["blocks/attn/proj/kernel"].reshape(model.depth, *heads, model.width)
    if "pos_embed" in flat:
        table = flat["pos_embed"]
        theirs[TABLE] = table.reshape(-1, *table.shape[-2:])
    return theirs


def _with_class_row(found: dict[str, np.ndarray], model: ViT) -> dict[str, np.ndarray]:
    """`found` with a row of zeros for a class token that our ViT has in its table and the file has not.

    Raises:
        UserError: LaPE would normalise that row, which big_vision's class token has not.
    """
    patches = int(np.prod(model.grid))
    absolute, _ = position.parse_pe(model.pe)
    frozen = absolute not in (None, position.LEARNABLE)
    bare = model.pool == "token" and (frozen or (TABLE in found and found[TABLE].shape[1] == patches))
    if bare and model.method.has_norms:
        raise UserError(
            f"big_vision's class token has no position embedding, and join={model.joining!r} of this model gives it "
            f"one: use a model with big_vision's names, such as vit_s_16 with pool='tok', or join={BASELINE!r}"
        )
    if not bare or frozen:
        return found
    table = found[TABLE]
    return {**found, TABLE: np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)}
