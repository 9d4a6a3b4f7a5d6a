"""Weights in files: `.npz` and `.safetensors` both ways, `.pth`, `.pt` and `.pth.tar` to read.

Names in a file are those of PyTorch (`blocks.0.norm1.weight`), the paths of our variables (`blocks/norm1/scale`, one
entry for all layers; see params.py) or those of big_vision; reading recognises which.
"""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from lape_jax.errors import UserError, nearest
from lape_jax.port import big_vision, pth, torch
from lape_jax.port.archive import open_zip, reading
from lape_jax.port.big_vision import from_big_vision, is_big_vision, to_big_vision
from lape_jax.port.params import from_flat, shapes, to_flat
from lape_jax.port.torch import WRAPPERS, from_torch, to_mmseg, to_torch

READ = (".npz", ".safetensors", ".pth", ".pt", ".pth.tar")
WRITTEN = (".npz", ".safetensors")
READERS = {"torch": from_torch, "lape": from_flat, "big_vision": from_big_vision}
WRITERS = {"torch": to_torch, "lape": to_flat, "big_vision": to_big_vision, "mmseg": to_mmseg}


def load(path: str | os.PathLike, model: nn.Module) -> dict:
    """The variables of `model`, `{"params": ...}` and other collections, from a file, as NumPy arrays of its types.

    A checkpoint of a training script may hold several sets of weights, such as those of the last step and their running
    mean: `FILE:KEY`, with KEY one of `lape_jax.port.torch.WRAPPERS`, says which is meant.

    A `.pth`, `.pt` or `.pth.tar` file is read without PyTorch, and nothing that its pickle asks for is run. See
    `from_torch` for what a state dict may look like.

    Raises:
        UserError: the suffix is not one of `READ`; the file is missing, damaged or not what its suffix says; or its
            weights do not fit the model.
    """
    weights, place = read(path)
    try:
        return fit(weights, model)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def fit(weights: Mapping[str, Any], model: nn.Module) -> dict:
    """The variables of `model` that are in `weights`, whose names say what they are names of."""
    names = format_of(weights)
    # Our own paths in a `BigVisionViT` are big_vision's, also where the model is more than big_vision's ViT can be.
    if names == "big_vision" and weights.keys() == shapes(model).keys():
        names = "lape"
    return READERS[names](weights, model)


def fit_first(weights: Mapping[str, Any], models: Iterable[nn.Module]) -> tuple[nn.Module, dict]:
    """The first of `models` (at least one) that the `weights` fit, and its variables.

    Raises:
        UserError: they fit none; says why not the first.
    """
    first: UserError | None = None
    for model in models:
        try:
            model.check()
            return model, fit(weights, model)
        except UserError as error:
            first = first or error
    raise first


def format_of(weights: Mapping[str, Any]) -> str:
    """Whose names these are, one of `WRITERS`."""
    if is_big_vision(weights):
        return "big_vision"
    return "lape" if any("/" in name for name in weights) else "torch"


def stored_shapes(weights: Mapping[str, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes, as they would have here, of the model's variables that `weights` have, whatever they are in `model`."""
    names = format_of(weights)
    if names == "torch":
        return torch.stored_shapes(weights, model)
    if names == "big_vision":
        return big_vision.stored_shapes(weights, model)
    paths = shapes(model)
    return {path: np.shape(weights[path]) for path in weights if path in paths}


def read(path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """What a file holds, by name, and how to speak of the file: see `load`, whose errors of files it raises."""
    name, _, key = os.fspath(path).rpartition(":")
    path, key = (Path(name), key) if key in WRAPPERS else (Path(path), "")
    _check_suffix(path, READ)
    if path.suffix == ".npz":
        weights: Any = _read_npz(path)
    elif path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    else:
        weights = pth.read(path)
    if key:
        if not isinstance(weights, Mapping) or not isinstance(weights.get(key), Mapping):
            raise UserError(f"{path} has no weights under {key!r}")
        weights, path = weights[key], Path(f"{path}:{key}")  # for what is said of it
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{path} holds a {type(weights).__name__} instead of arrays by name")
    return dict(weights), str(path)


def save(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    model: nn.Module,
    format: str = "torch",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the variables to an `.npz` or `.safetensors` file, which appears whole or not at all.

    Args:
        format: "torch" for a state dict (see `to_torch`), "lape" for our own paths, joined with "/", "big_vision" for
            its names (see `to_big_vision`), "mmseg" for MMSegmentation's (see `lape_jax.port.torch.to_mmseg`).
        metadata: texts by name, for `.safetensors` files.

    Raises:
        UserError: unknown suffix or format, `variables` that are not the model's, or a place that cannot be written to.
    """
    path = Path(path)
    if format not in WRITERS:
        raise UserError(f"format={nearest(format, WRITERS)}")
    _check_suffix(path, WRITTEN)
    arrays = WRITERS[format](variables, model)
    # safetensors writes memory as it is
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with replacing(path) as file:
        if path.suffix == ".npz":
            np.savez(file, **arrays)
        else:
            file.write(safetensors.numpy.save(arrays, dict(metadata) if metadata else None))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` when it is complete, or never.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def growing(path: Path) -> Iterator[TextIO]:
    """A new text file in the place of `path`, in which each line stands as soon as it is written.

    What is no text, as in names of files, becomes an escape with a backslash.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="", buffering=1) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_all(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files by name into a directory, which is made if need be; each whole or not at all.

    Raises:
        UserError: the directory cannot be made, or a file not be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={directory} cannot be made: {error.strerror}") from error
    for name, content in contents.items():
        with replacing(directory / name) as file:
            file.write(content)


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if not path.name.endswith(suffixes):
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
