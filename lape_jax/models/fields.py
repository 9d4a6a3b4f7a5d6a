"""Settings of a model that come as unchecked literals, from a command line or a JSON file."""

import dataclasses
import math
import types
import typing

import jax.numpy as jnp
from jax.typing import DTypeLike

from lape_jax.errors import UserError, nearest

DTYPES = ("bfloat16", "float16", "float32", "float64")
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple[int, int]: "a pair of whole numbers",
    tuple[int, ...]: "a list of whole numbers",
    type(None): "None",
}


def cast(field: dataclasses.Field, value: object) -> object:
    """`value` as a model's `field` has it: an int may stand for a float, a list for a tuple, a name for a dtype.

    Whatever is given for a name becomes text: which names are right, and so what to say of a wrong one, is known to
    the model.

    Raises:
        UserError: `value` is of another type, or a number that is not finite.
    """
    if field.type is DTypeLike:
        return _dtype(field.name, value)
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    for kind in kinds:
        if _is(value, kind):
            if kind is float:
                return float(value)
            return tuple(value) if isinstance(value, list) else value
    if str in kinds:
        return str(value)
    raise UserError(f"{field.name}={value!r} is not {' or '.join(_WORDS[kind] for kind in kinds)}")


def _is(value: object, kind: typing.Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, tuple | list) or not value:
            return False
        items = (items[0],) * len(value) if items[1] is ... else items
        return len(value) == len(items) and all(map(_is, value, items))
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _dtype(name: str, value: object) -> jnp.dtype:
    if value is not None:  # which NumPy takes for float64
        try:
            if jnp.dtype(value).name in DTYPES:
                return jnp.dtype(value)
        except TypeError:
            pass
    raise UserError(f"{name}={nearest(value, DTYPES)}")
