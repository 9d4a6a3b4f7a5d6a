"""PyTorch state dicts of the ViT family, in the names of official LaPE, DeiT and timm, to Flax parameters and back.

`NAMES` is the whole story: which parameter is which entry, and how its axes move. Blocks are separate in PyTorch
(`blocks.0`, `blocks.1`, ...) and stacked on a leading layer axis here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.port.params import FLOATS, as_array, check, copy, natural, shapes, to_flat


class Axes(NamedTuple):
    """How the axes of an entry move between the two."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Axes(lambda x: x, lambda x: x)
LINEAR = Axes(np.transpose, np.transpose)  # (out, in) <-> (in, out)
CONV = Axes(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
ROWS = Axes(lambda x: x[0], lambda x: x[None])  # (1, rows, D) <-> (rows, D)

NAMES = {
    "cls_token": ("cls_token", SAME),
    "dist_token": ("dist_token", SAME),
    "pos_embed": ("pos_embed", ROWS),
    "patch_embed/proj/kernel": ("patch_embed.proj.weight", CONV),
    "patch_embed/proj/bias": ("patch_embed.proj.bias", SAME),
    # LayerNorm and the kinds of pe_norm that have a vector (D,) or a scalar () to multiply with
    "blocks/pe_norm/scale": ("blocks.{i}.pe_norm.weight", SAME),
    "blocks/pe_norm/bias": ("blocks.{i}.pe_norm.bias", SAME),
    "blocks/norm1/scale": ("blocks.{i}.norm1.weight", SAME),
    "blocks/norm1/bias": ("blocks.{i}.norm1.bias", SAME),
    "blocks/attn/relative_position_bias_table": ("blocks.{i}.attn.relative_position_bias_table", SAME),
    # Rows of the PyTorch weight are [q; k; v], each head by head, and so are our columns: a transpose is all it takes.
    "blocks/attn/qkv/kernel": ("blocks.{i}.attn.qkv.weight", LINEAR),
    "blocks/attn/qkv/bias": ("blocks.{i}.attn.qkv.bias", SAME),
    "blocks/attn/proj/kernel": ("blocks.{i}.attn.proj.weight", LINEAR),
    "blocks/attn/proj/bias": ("blocks.{i}.attn.proj.bias", SAME),
    "blocks/ls1/gamma": ("blocks.{i}.gamma_1", SAME),
    "blocks/norm2/scale": ("blocks.{i}.norm2.weight", SAME),
    "blocks/norm2/bias": ("blocks.{i}.norm2.bias", SAME),
    "blocks/mlp/fc1/kernel": ("blocks.{i}.mlp.fc1.weight", LINEAR),
    "blocks/mlp/fc1/bias": ("blocks.{i}.mlp.fc1.bias", SAME),
    "blocks/mlp/fc2/kernel": ("blocks.{i}.mlp.fc2.weight", LINEAR),
    "blocks/mlp/fc2/bias": ("blocks.{i}.mlp.fc2.bias", SAME),
    "blocks/ls2/gamma": ("blocks.{i}.gamma_2", SAME),
    "norm/scale": ("norm.weight", SAME),
    "norm/bias": ("norm.bias", SAME),
    "head/kernel": ("head.weight", LINEAR),
    "head/bias": ("head.bias", SAME),
    "head_dist/kernel": ("head_dist.weight", LINEAR),
    "head_dist/bias": ("head_dist.bias", SAME),
}
UNSHARED = ("pos_embed{i}", ROWS)  # what "pos_embed" is where each layer has a table of its own
TIMM = {"blocks/ls1/gamma": "blocks.{i}.ls1.gamma", "blocks/ls2/gamma": "blocks.{i}.ls2.gamma"}  # read, never written

# Entries that are no parameters here: compared when read, and written for PyTorch code that asks for them.
FROZEN_TABLE = "pos_embed"
INDEX = "blocks.{i}.attn.relative_position_index"
TABLE_TOLERANCE = 1e-5

WRAPPERS = ("model", "state_dict")
PREFIX = "module."  # of models that were trained in parallel


def from_torch(state_dict: Mapping[str, Any], model: nn.Module) -> dict:
    """The variables `{"params": ...}` of `model` with the weights of a PyTorch state dict.

    Args:
        state_dict: arrays by name, as NumPy or JAX arrays or PyTorch tensors, with official LaPE, DeiT or timm names;
            all of them may begin with `module.`, and the dict may sit in another one under `model` or `state_dict`
            (other entries beside it, such as averaged weights, are not looked at: pass them themselves to use them).
        model: what the weights are for. Every parameter must be there, and nothing else may be, except a frozen
            sinusoid `pos_embed` and `relative_position_index`, which must agree with the model's and are dropped.

    Returns:
        NumPy arrays of the types they came in; bit for bit the same values.

    Raises:
        UserError: the names or shapes do not fit (all of them are listed), a weight is not floating point or not
            finite, or a frozen table is not the model's.
    """
    given = _unwrap(state_dict)
    arrays = {name: as_array(name, value) for name, value in given.items()}
    prefix = PREFIX if arrays and all(name.startswith(PREFIX) for name in arrays) else ""
    entries = _entries(shapes(model))
    for name, constant in _constants(model).items():
        if prefix + name in arrays:
            _verify(prefix + name, arrays.pop(prefix + name), constant)
    names = {
        entry: prefix + next((n for n in entry.names if prefix + n in arrays), entry.names[0]) for entry in entries
    }
    check(arrays, {names[entry]: entry.shape for entry in entries}, "the state dict")
    flat: dict[str, Any] = {}
    for entry in entries:
        value = entry.axes.to_flax(arrays[names[entry]])
        if entry.layer is None:
            flat[entry.path] = copy(value)
        else:
            flat.setdefault(entry.path, []).append(value)
    return {"params": unflatten_dict({path: _stack(path, value) for path, value in flat.items()}, sep="/")}


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The PyTorch state dict of `variables`: the inverse of `from_torch`, bit for bit.

    Names are those of official LaPE and DeiT (layer scales `gamma_1`, `gamma_2`). A frozen sinusoid is written as
    `pos_embed` and the index of a relative position bias as `relative_position_index`, as in the official code.

    Raises:
        UserError: `variables` are not those of `model`, or a weight is not floating point or not finite.
    """
    flat = to_flat(variables, model)
    state_dict = {}
    for entry in _entries({path: array.shape for path, array in flat.items()}):
        value = flat[entry.path] if entry.layer is None else np.asarray(flat[entry.path][entry.layer])
        state_dict[entry.names[0]] = copy(entry.axes.to_torch(value))
    for name, constant in _constants(model).items():
        dtype = constant.dtype if constant.dtype.kind == "i" else state_dict["patch_embed.proj.weight"].dtype
        state_dict[name] = constant.astype(dtype)  # a copy
    return dict(sorted(state_dict.items(), key=lambda item: natural(item[0])))


class _Entry(NamedTuple):
    """One entry of a state dict, and where its values belong."""

    names: tuple[str, ...]  # the one that is written first; any is read
    shape: tuple[int, ...]
    path: str
    layer: int | None  # index on the leading axis of the parameter, if that is stacked
    axes: Axes


def _entries(shapes: Mapping[str, tuple[int, ...]]) -> list[_Entry]:
    """All entries that the state dict has, without those of `_constants`, for parameters of these `shapes`."""
    entries = []
    for path, shape in shapes.items():
        if path not in NAMES:
            raise UserError(f"the parameter {path} of this model has no counterpart in PyTorch ViTs")
        name, axes = UNSHARED if path == "pos_embed" and len(shape) == 3 else NAMES[path]
        patterns = (name, TIMM[path]) if path in TIMM else (name,)
        stacked = "{i}" in name
        placeholder = np.broadcast_to(np.float32(0), shape[1:] if stacked else shape)  # only for its shape
        for layer in range(shape[0]) if stacked else (None,):
            entries.append(
                _Entry(tuple(p.format(i=layer) for p in patterns), axes.to_torch(placeholder).shape, path, layer, axes)
            )
    return entries


def _constants(model: nn.Module) -> dict[str, np.ndarray]:
    """What PyTorch models keep in their state dict though nobody learns it: float64 tables and int64 indices."""
    absolute, relative = position.parse_pe(model.pe)
    rows = model.extra_rows + model.grid[0] * model.grid[1]
    constants = {}
    # The official code keeps the 1-D table without the leading axis that all others have.
    if absolute == position.SINCOS_1D:
        constants[FROZEN_TABLE] = position.sincos_1d(rows, model.width)
    elif absolute == position.SINCOS_2D:
        constants[FROZEN_TABLE] = position.sincos_2d(model.grid, model.width, model.extra_rows)[None]
    if relative:
        index = position.relative_position_index(model.grid).astype(np.int64)
        constants |= {INDEX.format(i=layer): index for layer in range(model.depth)}
    return constants


def _verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array`, with or without a leading axis of 1, is the model's `constant`.

    Indices must be equal. Tables may be off by `TABLE_TOLERANCE` (or by 2^-24 of the last position, if that is more:
    float32 code rounds the angle), and by the rounding of the type that they are stored in.
    """
    expected = constant.reshape(constant.shape[-2:])
    if array.shape not in (expected.shape, (1, *expected.shape)):
        raise UserError(f"{name} is {array.shape} and should be {constant.shape}")
    is_index = constant.dtype.kind == "i"
    if array.dtype.kind not in "iu" if is_index else array.dtype not in FLOATS:
        raise UserError(f"{name} is {array.dtype} and should be {'an integer' if is_index else 'floating point'}")
    tolerance = 0.0
    if not is_index:
        tolerance = max(TABLE_TOLERANCE, len(expected) * 2.0**-24) + float(jnp.finfo(array.dtype).eps)
    error = np.abs(array.astype(np.float64) - expected).max()
    if not error <= tolerance:  # so that NaN is refused
        raise UserError(f"{name} differs by up to {error:.2g} from the one that this model has fixed")


def _unwrap(state_dict: Any) -> Mapping:
    """The state dict itself, taken out of the training checkpoint that may hold it."""
    if not isinstance(state_dict, Mapping):
        raise UserError(f"a state dict should map names to arrays, and this is a {type(state_dict).__name__}")
    inside = [key for key in WRAPPERS if isinstance(state_dict.get(key), Mapping)]
    if len(inside) > 1:
        raise UserError("the checkpoint has weights under 'model' and under 'state_dict': pass the ones that you mean")
    return state_dict[inside[0]] if inside else state_dict


def _stack(path: str, value: np.ndarray | list[np.ndarray]) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    types = sorted({str(part.dtype) for part in value})
    if len(types) > 1:
        raise UserError(f"the layers of {path} have different types ({', '.join(types)}), and are one array here")
    return np.stack(value)
