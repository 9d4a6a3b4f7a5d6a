"""Weights in files: read whatever the file is called, see contents.py, and written as `.npz` and `.safetensors`.

Names in a file are those of PyTorch (`blocks.0.norm1.weight`), the paths of our variables (`blocks/norm1/scale`, one
entry for all layers; see params.py) or those of big_vision; reading recognises which.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

import flax.linen as nn
import numpy as np
import safetensors.numpy

from lape_jax import atomic
from lape_jax.errors import UserError, nearest
from lape_jax.models.segmenter import Segmenter
from lape_jax.port import backbone, big_vision, checkpoint, huggingface, torch
from lape_jax.port.big_vision import from_big_vision, is_big_vision, to_big_vision
from lape_jax.port.contents import read, say
from lape_jax.port.hub import local
from lape_jax.port.params import from_flat, shapes, to_flat
from lape_jax.port.torch import to_mmseg, to_timm, to_torch, to_torchvision

WRITTEN = (".npz", ".safetensors")
READERS = {"torch": torch.read, "lape": from_flat, "big_vision": from_big_vision}
WRITERS = {
    "torch": to_torch,
    "lape": to_flat,
    "big_vision": to_big_vision,
    "big_vision_stacked": functools.partial(to_big_vision, scan=True),
    "mmseg": to_mmseg,
    "timm": to_timm,
    "torchvision": to_torchvision,
}
HUGGING_FACE = "hf"  # a format of directories
Result = TypeVar("Result")


def load(path: str | os.PathLike, model: nn.Module) -> dict:
    """The variables of `model`, `{"params": ...}` and other collections, from a file, as NumPy arrays of its types.

    The weights may be in dicts in dicts, with a prefix before all names (`module.`, `_orig_mod.`, `backbone.`, ...),
    and beside other things: what fits the model is taken, and what was taken off is logged. Where two sets of weights
    fit, such as those of the last step and their EMA, `FILE:KEY` says which is meant. A directory is what
    Hugging Face's libraries call the weights in it, and `hf:OWNER/NAME` such a one on their hub. If the config.json
    beside the weights says an epsilon or a GELU that is not the model's, that is logged.

    Files of torch.save are read without PyTorch, and nothing that its pickle asks for is run. See `from_torch` for what
    a state dict may look like.

    Raises:
        UserError: the file is missing, damaged or none of weights; or its weights do not fit the model, or twice.
    """
    path = local(path)
    weights, place = read(path)
    with speaking_of(place):
        part, (variables, left) = checkpoint.choose(weights, known(model), lambda part: fit_part(part, model))
    other = huggingface.difference(path, model)
    say(place, (*part.notes, *left, *([other] if other else [])))
    return variables


def fit_part(part: checkpoint.Part, model: nn.Module) -> tuple[dict, tuple[str, ...]]:
    """The variables of `model` that are in a part of a checkpoint, and what to say of what is not one of them.

    All must be, unless the model has no head (`num_classes=0`): then what pre-training puts beside a backbone is left.

    Raises:
        UserError: as `load`.
    """
    if getattr(model, "num_classes", None) != 0:
        return fit({**part.arrays, **part.outside}, model), ()
    patterns = known(model) | frozenset(map(checkpoint.pattern, shapes(model)))
    arrays, notes = backbone.alone(part.arrays, part.outside, patterns)
    return fit(arrays, model), notes


@contextlib.contextmanager
def speaking_of(place: str) -> Iterator[None]:
    """Puts before what a UserError says which weights it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def known(model: nn.Module) -> frozenset[str]:
    """The `pattern` of each name that weights of `model` have, in PyTorch or here; also of a Segmenter's classifier."""
    found = shapes(model)
    if is_big_vision(found):  # whose layouts `from_big_vision` knows itself
        return frozenset()
    names = {*found, *torch.names(model, found)}
    if isinstance(model, Segmenter):
        classifier = model.classifier()
        names |= torch.names(classifier, shapes(classifier))
    return frozenset(map(checkpoint.pattern, names))


def fit(weights: Mapping[str, Any], model: nn.Module, absent: Collection[str] = ()) -> dict:
    """The variables of `model` that are in `weights`, whose names say what they are names of; not those `absent`."""
    names = format_of(weights)
    # Our own paths in a `BigVisionViT` are big_vision's, also where the model is more than big_vision's ViT can be.
    if names == "big_vision" and weights.keys() == shapes(model, absent).keys():
        names = "lape"
    return READERS[names](weights, model, absent)


def fit_first(models: Iterable[nn.Module], attempt: Callable[[nn.Module], Result]) -> tuple[nn.Module, Result]:
    """The first of `models` (at least one) with which `attempt` succeeds, and what it gives.

    Raises:
        UserError: it succeeds with none; says why not with the first.
    """
    first: UserError | None = None
    for model in models:
        try:
            model.check()
            return model, attempt(model)
        except UserError as error:
            first = first or error
    raise first


def format_of(weights: Mapping[Any, Any]) -> str:
    """Whose names these are, one of `READERS`."""
    names = [str(name) for name in weights]
    if is_big_vision(names):
        return "big_vision"
    return "lape" if any("/" in name for name in names) else "torch"


def stored_shapes(weights: Mapping[str, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes, as they would have here, of the model's variables that `weights` have, whatever they are in `model`."""
    names = format_of(weights)
    if names == "torch":
        return torch.stored_shapes(weights, model)
    if names == "big_vision":
        return big_vision.stored_shapes(weights, model)
    paths = shapes(model)
    return {path: np.shape(weights[path]) for path in weights if path in paths}


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
            its names (see `to_big_vision`), with blocks apart, or "big_vision_stacked", "mmseg" for MMSegmentation's,
            "timm" for timm's and "torchvision" for torchvision's (see `lape_jax.port.torch`). "hf" writes a directory,
            which `from_pretrained` of Hugging Face's transformers reads (see `lape_jax.port.huggingface.contents`).
        metadata: texts by name, for `.safetensors` files and directories.

    Raises:
        UserError: unknown suffix or format, `variables` that are not the model's, or a place that cannot be written to.
    """
    path = Path(path)
    if format not in (*WRITERS, HUGGING_FACE):
        raise UserError(f"format={nearest(format, (*WRITERS, HUGGING_FACE))}")
    if format == HUGGING_FACE:
        if path.name.endswith(WRITTEN) or path.is_file():
            raise UserError(f"{path}: weights for Hugging Face's transformers are a directory, not a file")
        return write_all(path, huggingface.contents(variables, model, metadata))
    if not path.name.endswith(WRITTEN):
        raise UserError(f"{path}: weights are written to files that end in {', '.join(WRITTEN)}")
    arrays = WRITERS[format](variables, model)
    # safetensors writes memory as it is
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic.replacing(path) as file:
        if path.suffix == ".npz":
            np.savez(file, **arrays)
        else:
            file.write(safetensors.numpy.save(arrays, dict(metadata) if metadata else None))


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
        raise UserError(f"{directory} cannot be made: {error.strerror}") from error
    for name, content in contents.items():
        atomic.write(directory / name, content)
