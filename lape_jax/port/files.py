"""Weights in files: `.npz` and `.safetensors` both ways, `.pth` and `.pt` to read.

Names in a file are either those of PyTorch (`blocks.0.norm1.weight`) or the paths of our parameters
(`blocks/norm1/scale`, one entry for all layers); reading recognises which.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from lape_jax.errors import UserError, nearest
from lape_jax.port import pth
from lape_jax.port.archive import open_zip, reading
from lape_jax.port.params import from_flat, to_flat
from lape_jax.port.torch import from_torch, to_torch

READ = (".npz", ".safetensors", ".pth", ".pt")
WRITTEN = (".npz", ".safetensors")
FORMATS = ("torch", "lape")


def load(path: str | os.PathLike, model: nn.Module) -> dict:
    """The variables `{"params": ...}` of `model` from a file, as NumPy arrays of the types that the file has.

    A `.pth` or `.pt` file is read without PyTorch, and nothing that its pickle asks for is run. See `from_torch` for
    what a state dict may look like.

    Raises:
        UserError: the suffix is not one of .npz, .safetensors, .pth, .pt; the file is missing, damaged or not what its
            suffix says; or its weights do not fit the model.
    """
    path = Path(path)
    _check_suffix(path, READ)
    if path.suffix == ".npz":
        weights: Any = _read_npz(path)
    elif path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    else:
        weights = pth.read(path)
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{path} holds a {type(weights).__name__} instead of arrays by name")
    try:
        paths = any("/" in name for name in weights)
        return from_flat(weights, model) if paths else from_torch(weights, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def save(path: str | os.PathLike, variables: Mapping[str, Any], model: nn.Module, format: str = "torch") -> None:
    """Writes the parameters to an `.npz` or `.safetensors` file, which appears whole or not at all.

    Args:
        format: "torch" for a state dict (see `to_torch`), "lape" for our own paths, joined with "/".

    Raises:
        UserError: unknown suffix or format, `variables` that are not the model's, or a place that cannot be written to.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"format={nearest(format, FORMATS)}")
    _check_suffix(path, WRITTEN)
    arrays = to_torch(variables, model) if format == "torch" else to_flat(variables, model)
    arrays = {
        name: np.asarray(array, order="C") for name, array in arrays.items()
    }  # safetensors writes memory as it is
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            if path.suffix == ".npz":
                np.savez(file, **arrays)
            else:
                file.write(safetensors.numpy.save(arrays))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix not in suffixes:
        verb = "written to" if suffixes == WRITTEN else "read from"
        raise UserError(f"{path}: weights are {verb} files that end in {', '.join(suffixes)}")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "NumPy .npz"), open_zip(path), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
        # NumPy knows no bfloat16 and stores it as two opaque bytes.
        return {name: x.view(jnp.bfloat16) if x.dtype == np.dtype("V2") else x for name, x in arrays.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "safetensors"):
        return safetensors.numpy.load_file(path)
