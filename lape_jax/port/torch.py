"""PyTorch state dicts to Flax variables and back; which names a model has there is said in a module per family."""

import logging
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import numpy as np

from lape_jax.errors import UserError
from lape_jax.models.base import Classifier
from lape_jax.models.ceit import CeiT
from lape_jax.models.compact import ViTLite
from lape_jax.models.mask_rcnn import MaskRCNN
from lape_jax.models.regnet import RegNet
from lape_jax.models.segmenter import Segmenter
from lape_jax.models.swin import Swin
from lape_jax.models.t2t import T2TViT
from lape_jax.models.upernet import UperNet
from lape_jax.models.vit import ViT
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.nn import position
from lape_jax.port import (
    ceit,
    compact,
    foreign,
    mask_rcnn,
    regnet,
    rope,
    segmenter,
    swin,
    t2t,
    upernet,
    vit,
    vit_adapter,
)
from lape_jax.port.checkpoint import choose, pattern
from lape_jax.port.conventions import described
from lape_jax.port.entries import ROWS
from lape_jax.port.params import as_array, check, copy, natural, shapes, to_flat, unflatten

# By class of the model (or of what it inherits from): the module that says what is in its state dict.
#     entries(shapes)                variables by path -> the entries that hold them
#     constants(model, dtype)        entries that are no variables here: compared when read, written for PyTorch
#     verify(name, array, constant)  that comparison
#     official(arrays)               of some: the arrays by official names, where others' would mean other entries
FAMILIES = {
    ViT: vit,
    ViTLite: compact,
    T2TViT: t2t,
    CeiT: ceit,
    Swin: swin,
    RegNet: regnet,
    Segmenter: segmenter,
    ViTAdapter: vit_adapter,
    UperNet: upernet,
    MaskRCNN: mask_rcnn,
}

#     aliases()                      of some: other names that `official` knows, # for numbers
MASKS = "attn_mask"
# What a model must have, if it has such a thing, to compute what one of torchvision's does.
TV_NEEDS = {"joining": "default", "gelu": "erf", "pool": "token"}
TV_NEEDS |= {"layer_scale": None, "distilled": False, "registers": 0}
_log = logging.getLogger(__name__)


def from_torch(state_dict: Mapping[str, Any], model: nn.Module, absent: Collection[str] = ()) -> dict:
    """The variables of `model`, `{"params": ...}` and other collections, with the weights of a PyTorch state dict.

    Args:
        state_dict: arrays by name, as NumPy or JAX arrays or PyTorch tensors, with official names (LaPE, DeiT, Compact
            Transformers, T2T-ViT, CeiT, Swin, Segmenter) or those of timm, MMSegmentation, torchvision or Hugging
            Face's files; all of them may begin with one prefix such as `module.`, and the dict may sit in another one;
            both are logged. Where it has two sets of weights that fit, pass the one that you mean.
        model: what the weights are for. Every variable must be there, and nothing else may be, except a frozen
            sinusoid `pos_embed` and `relative_position_index`, which must agree with the model's, and the counters of
            BatchNorms, and the unused head of a Segmenter's encoder; these are dropped.
        absent: paths of variables that are not there.

    Returns:
        NumPy arrays of the types they came in; bit for bit the same values.

    Raises:
        UserError: the names or shapes do not fit, a weight is not floating point or not finite, or a frozen table is
            not the model's.
    """
    if not isinstance(state_dict, Mapping):
        raise UserError(f"a state dict should map names to arrays, and this is a {type(state_dict).__name__}")
    _family(model)  # says so, if there is none
    known = frozenset(map(pattern, names(model, shapes(model))))
    part, variables = choose(state_dict, known, lambda part: read({**part.arrays, **part.outside}, model, absent))
    for note in part.notes:
        _log.warning("the state dict: %s", note)
    return variables


def names(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """All names that a state dict of `model`, whose variables have these `shapes`, may have.

    None for a model that has no counterpart in PyTorch.
    """
    try:
        family = _family(model)
        found = {name for entry in family.entries(shapes) for name in entry.names}
    except UserError:
        return set()
    found |= family.aliases() if hasattr(family, "aliases") else set()
    return found | family.constants(model).keys()


def read(given: Mapping[Any, Any], model: nn.Module, absent: Collection[str] = ()) -> dict:
    """As `from_torch`, of a dict that has the weights and nothing else, under the model's own names."""
    arrays = {name: as_array(name, value) for name, value in given.items()}
    family = _family(model)
    arrays = rope.with_class_row(_official(arrays, family), model)
    entries = family.entries(shapes(model, absent))
    for name, constant in family.constants(model).items():
        if name in arrays:
            family.verify(name, arrays.pop(name), constant)
    chosen = {entry: next((name for name in entry.names if name in arrays), entry.names[0]) for entry in entries}
    check(arrays, {chosen[entry]: entry.shape for entry in entries}, described("the state dict", given))
    flat: dict[str, Any] = {}
    for entry in entries:
        value = entry.axes.to_flax(arrays[chosen[entry]])
        if entry.layer is None:
            flat[entry.path] = copy(value)
        else:
            flat.setdefault(entry.path, []).append(value)
    return unflatten({path: _stack(path, value) for path, value in flat.items()})


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The PyTorch state dict of `variables`: the inverse of `from_torch`, bit for bit.

    Names are those of official LaPE and DeiT (layer scales `gamma_1`, `gamma_2`), and for RoPE those of
    naver-ai/rope-vit: see `lape_jax.port.rope`, also for the class token's row of a table beside it. A frozen sinusoid
    is written as `pos_embed` and the index of a relative position bias as `relative_position_index`, as in the official
    code. The counters of BatchNorms, and the head of a Segmenter's encoder, are written as 0.

    Raises:
        UserError: `variables` are not those of `model`, or a weight is not floating point or not finite.
    """
    family, flat = _family(model), to_flat(variables, model)
    state_dict = {}
    for entry in family.entries({path: array.shape for path, array in flat.items()}):
        value = flat[entry.path] if entry.layer is None else np.asarray(flat[entry.path][entry.layer])
        state_dict[entry.names[0]] = copy(entry.axes.to_torch(value))
    state_dict |= family.constants(model, next(iter(state_dict.values())).dtype)
    state_dict = rope.without_class_row(state_dict, model)
    return dict(sorted(state_dict.items(), key=lambda item: natural(item[0])))


def to_timm(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The state dict of a ViT's `variables` in timm's names, where they are others; `from_torch` reads it.

    Those of its classes `VisionTransformer` and, with RoPE, `Eva` (`vit_small_patch16_rope_mixed_224` and the like).

    Raises:
        UserError: as `to_torch`; the model is none that timm has under DeiT's names.
    """
    if type(model) is not ViT:
        raise UserError(f"a {type(model).__name__} has no names of its own in timm: format 'torch' is what there is")
    state_dict = to_torch(variables, model)
    if position.parse_rope(model.pe):
        return rope.to_timm(state_dict, model)
    return {name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): x for name, x in state_dict.items()}


def to_mmseg(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The state dict of a Segmenter's `variables` in MMSegmentation's names; `from_torch` reads it.

    Raises:
        UserError: as `to_torch`; the model is no Segmenter, or has what MMSegmentation's has not.
    """
    if _family(model) is not segmenter:
        raise UserError(f"a {type(model).__name__} has no names in MMSegmentation: only a Segmenter has")
    return segmenter.to_mmseg(to_torch(variables, model))


def to_torchvision(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The state dict of the `variables` of a ViT or Swin in torchvision's names; `from_torch` reads it.

    Raises:
        UserError: as `to_torch`; or torchvision has no model that computes what this one does.
    """
    kinds = {ViT: (foreign.TV_VIT, "learnable", 1e-6), Swin: (foreign.TV_SWIN, "relative", 1e-5)}
    if type(model) not in kinds:
        raise UserError(f"a {type(model).__name__} has no names in torchvision: only ViTs and Swins have")
    who, pe, eps = kinds[type(model)]
    for field, value in {**TV_NEEDS, "pe": pe, "ln_eps": eps}.items():
        if (own := getattr(model, field, value)) != value:
            name = "join" if field == "joining" else field
            raise UserError(f"{name}={own!r}: {who.who} has {value!r}, so must the model have")
    state_dict = to_torch(variables, model)
    return foreign.renamed({name: x for name, x in state_dict.items() if not name.endswith(MASKS)}, who)


def stored_shapes(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes, as they would have here, of the model's variables that a state dict has, whatever they are in `model`.

    Also, as `MASKS`, that of the masks in the first stage of a Swin: (windows, tokens of one, tokens of one).
    """
    family = _family(model)
    given = _official({name: value for name, value in state_dict.items() if hasattr(value, "shape")}, family)
    given = rope.with_class_row(given, model, any_joining=True)
    found, paths = {}, shapes(model)
    for entry in family.entries(paths):
        value = next((given[name] for name in entry.names if hasattr(given.get(name), "shape")), None)
        if value is not None and entry.axes is ROWS and len(value.shape) == 2:  # LaPE's 1-D sinusoid
            found[entry.path] = tuple(value.shape)
        elif value is not None and len(value.shape) == len(entry.shape):
            shape = entry.axes.to_flax(np.broadcast_to(np.float32(0), value.shape)).shape
            before = found.get(entry.path, (0,))[0]  # layers, so far
            found[entry.path] = shape if entry.layer is None else (before + 1, *shape)
    if hasattr(masks := given.get(swin.MASK.format(s=0, i=1)), "shape"):
        found[MASKS] = tuple(masks.shape)
    return found


def _family(model: nn.Module) -> ModuleType:
    if isinstance(model, Classifier) and not model.method.trainable:
        raise UserError(f"join={model.joining!r} has no counterpart in PyTorch: convert the model before it is folded")
    for kind in type(model).__mro__:
        if kind in FAMILIES:
            return FAMILIES[kind]
    raise UserError(f"a {type(model).__name__} has no counterpart in PyTorch")


def _official(arrays: Mapping[str, Any], family: ModuleType) -> Mapping[str, Any]:
    return rope.official(family.official(arrays) if hasattr(family, "official") else arrays)


def _stack(path: str, value: np.ndarray | list[np.ndarray]) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    types = sorted({str(part.dtype) for part in value})
    if len(types) > 1:
        raise UserError(f"the layers of {path} have different types ({', '.join(types)}), and are one array here")
    return np.stack(value)
