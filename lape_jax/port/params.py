"""Variables as a flat dict of NumPy arrays, and the check that they are those of a model.

The path of a parameter is bare, "blocks/norm1/scale"; that of any other variable begins with its collection, one of
`COLLECTIONS`: "batch_stats/stem/bn/mean".
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lape_jax.errors import UserError
from lape_jax.port.pickled import Opaque

FEW = 3  # names that one error gives of a kind
LONG, MESSAGE = 70, 390  # characters of a name, and of an error with fewer names where these are long
COLLECTIONS = ("batch_stats", "constants")
FLOATS = tuple(np.dtype(kind) for kind in (np.float16, jnp.bfloat16, np.float32, np.float64))


def to_flat(variables: Mapping[str, Any], model: nn.Module, absent: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The variables by '/'-joined path, on the host, after a check that they are those of `model`.

    Args:
        absent: paths of variables that are not there.

    Raises:
        UserError: they are not, or a weight is not floating point or not finite.
    """
    if not isinstance(variables, Mapping) or not isinstance(variables.get("params"), Mapping):
        raise UserError("variables should be a dict with the parameters under 'params'")
    flat = {path: as_array(path, value) for path, value in flatten(variables).items()}
    check(flat, shapes(model, absent), "the tree of variables")
    return flat


def from_flat(arrays: Mapping[str, Any], model: nn.Module, absent: Collection[str] = ()) -> dict:
    """The variables of `model`, `{"params": ...}` and other collections, by '/'-joined path: the inverse of `to_flat`.

    Args:
        absent: paths of variables that are not there.

    Raises:
        UserError: they are not the model's, or a weight is not floating point or not finite.
    """
    flat = {path: copy(as_array(path, value)) for path, value in arrays.items()}
    check(flat, shapes(model, absent), "the file")
    return unflatten(flat)


def shapes(model: nn.Module, absent: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """Shapes of the variables of `model` by '/'-joined path, but for those that are `absent`."""
    found = flatten(model.variable_shapes())
    return {path: leaf.shape for path, leaf in found.items() if path not in absent}


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of all collections by '/'-joined path, see above."""
    others = {collection: tree for collection, tree in variables.items() if collection != "params"}
    return flatten_dict(variables["params"], sep="/") | flatten_dict(others, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params = unflatten_dict(flat, sep="/")
    others = {collection: params.pop(collection) for collection in COLLECTIONS if collection in params}
    return {"params": params, **others}


def check(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises UserError unless `arrays` are finite weights of these `shapes`; it counts the faults and names a few."""
    common = [name for name in shapes if name in arrays]
    misshapen = [name for name in common if arrays[name].shape != shapes[name]]
    untyped = [name for name in common if arrays[name].dtype not in FLOATS]
    sound = [name for name in common if name not in misshapen and name not in untyped]
    infinite = [name for name in sound if not np.isfinite(arrays[name]).all()]
    faults = {
        # If there is nothing that the model has, the names are others, and those that it wants tell nothing.
        "it lacks": [name for name in shapes if name not in arrays] if common or not arrays else [],
        "the model has no": [name for name in arrays if name not in shapes],
        "shapes differ:": [f"{name} is {arrays[name].shape} and should be {shapes[name]}" for name in misshapen],
        "not floating point:": [f"{name} is {arrays[name].dtype}" for name in untyped],
        "not finite:": infinite,
    }
    fit = f"{len(sound) - len(infinite)} of {len(shapes)} fit"
    for count in range(FEW, 0, -1) if any(faults.values()) else ():
        lists = [f"{fault} {first_few(sorted(names, key=natural), count)}" for fault, names in faults.items() if names]
        message = f"{what} ({fit}) does not fit the model: {'; '.join(lists)}"
        if len(message) <= MESSAGE or count == 1:
            raise UserError(message)


def first_few(texts: Iterable[str], count: int = FEW) -> str:
    """`texts` joined by commas, and if they are many, the first `count` and how many there are besides.

    Those of layers in sequence, alike but for the layer's number, are one then: "blocks.0-11.norm1.bias".
    """
    texts = list(texts)
    shown = [(text, 1) for text in texts] if len(texts) <= count else _by_layers(texts)
    rest = sum(number for _, number in shown[count:])
    named = ", ".join(text if len(text) <= LONG else f"{text[: LONG - 3]}..." for text, _ in shown[:count])
    return f"{named} and {rest} more" if rest else named


def _by_layers(texts: list[str]) -> list[tuple[str, int]]:
    """`texts`, those of layers in sequence as one, each with the number of those that it is."""
    layers: dict[tuple[str, str], list[int]] = {}
    for text in texts:
        before, number, after = re.fullmatch(r"(?s)(.*?)(?:\.(\d{1,9})(?=\.)(.*))?", text).groups()
        layers.setdefault((before, after or ""), []).append(-1 if number is None else int(number))
    shown = []
    for (before, after), numbers in layers.items():
        first, last = min(numbers), max(numbers)
        if 1 < len(numbers) == last - first + 1 and numbers == list(range(first, last + 1)):
            shown.append((f"{before}.{first}-{last}{after}", len(numbers)))
        else:
            shown += [(before if number < 0 else f"{before}.{number}{after}", 1) for number in numbers]
    return shown


def as_array(name: Any, value: Any) -> np.ndarray:
    """`value` as a NumPy array of its own type in native byte order; a PyTorch tensor is recognised by its methods."""
    if not isinstance(name, str):
        raise UserError(f"weights should have names, and {name!r} is none")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 that PyTorch knows of; float32 holds each of its values.
        is_bfloat16 = str(value.dtype) == "torch.bfloat16"
        value = value.float().numpy().astype(jnp.bfloat16) if is_bfloat16 else value.numpy()
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        kind = value.name if isinstance(value, Opaque) else type(value).__name__
        raise UserError(f"{name} should be an array, and is a {kind}")
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def copy(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="C")


def natural(name: str) -> list[str | tuple[int, str]]:
    """Sorting key that puts blocks.10 behind blocks.2."""
    # Not by int(part): a name may be anything, and Python refuses numbers of thousands of digits.
    return [(len(part), part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
