"""What a file of weights holds: arrays by name, in NumPy's `.npz`, safetensors, what torch.save writes, or shards.

So do the checkpoints of big_vision's trainer, which are directories.

The kind of a file is recognised by its content, whatever it is called (`.bin`, `.ckpt`, nothing at all). Only an index
of shards is known by its name, `*.json`, and a damaged file is said to be what its suffix says.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from lape_jax.errors import UserError
from lape_jax.port import pth
from lape_jax.port.archive import RefusedError, open_zip, reading
from lape_jax.port.checkpoint import select
from lape_jax.port.hub import IN_DIRECTORY, local
from lape_jax.port.params import first_few

KINDS = "an .npz file, safetensors, and what torch.save writes"
SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.\w+")
# What is found in the place of weights, and how it begins.
OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS: the weights themselves have not been fetched",
    b"<!doctype html": "a web page, not a file of weights",
    b"<html": "a web page, not a file of weights",
    b"\x89hdf": "an HDF5 file, which is not read",
}
# What helps pickles to make other values, and is none itself.
PLUMBING = re.compile(r"(copyreg|copy_reg|_codecs|builtins|__builtin__|numpy\.dtype)\b.*")
_log = logging.getLogger(__name__)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """What a file holds, by name, and how to speak of the file.

    `FILE:KEY` is what is under KEY in it, see `lape_jax.port.checkpoint.select`. A directory is that file in it which
    is the first of `IN_DIRECTORY`. `hf:OWNER/NAME` is such a directory on the hub, see `lape_jax.port.hub.local`.

    Raises:
        UserError: the file is missing, damaged or of another kind; or has nothing under KEY, or no arrays by name.
    """
    file, key = split(path)
    if file.is_dir():
        file = directory_weights(file) or file
    skipped: set[str] = set()
    found = _reader(file)(file, skipped)
    if not isinstance(found, Mapping):
        kind = getattr(found, "name", type(found).__name__)
        raise UserError(
            f"{file} holds a {kind} instead of arrays by name: save the weights alone, as in "
            f"torch.save(model.state_dict(), path)"
        )
    if names := sorted(name for name in skipped if not PLUMBING.fullmatch(name)):
        say(str(file), (f"skipped values that are no tensors: {first_few(names)}",))
    if not key:
        return dict(found), str(file)
    try:
        return dict(select(found, key)), f"{file}:{key}"
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def split(path: str | os.PathLike) -> tuple[Path, str]:
    """The file, and the KEY in it or "", that `FILE:KEY` or `FILE` names; of what is on the hub, the copy here."""
    text = local(path)
    if not os.path.exists(text):
        for colon in re.finditer(":", text):
            if os.path.exists(text[: colon.start()]):
                return Path(text[: colon.start()]), text[colon.end() :]
    return Path(text), ""


def directory_weights(directory: Path) -> Path | None:
    """The file of weights in a directory that is not a run's, or a checkpoint of big_vision's itself; else None."""
    if _zarr_arrays(directory):
        return directory
    return next((directory / name for name in IN_DIRECTORY if (directory / name).is_file()), None)


def say(place: str, notes: tuple[str, ...]) -> None:
    """Logs what was done to get at the weights in `place`, a line each, on the first process."""
    for note in notes if notes and jax.process_index() == 0 else ():
        _log.warning("%s: %s", place, note)


def _reader(path: Path) -> Callable[[Path, set[str]], Any]:
    """How to read the file."""
    if path.is_dir() and _zarr_arrays(path):
        return _read_zarr
    if path.is_dir():
        raise UserError(
            f"{path} cannot be read: it is a directory without any of {', '.join(IN_DIRECTORY)} (of a run, give the "
            f"workdir where one is asked for, or what export has written)"
        )
    if (shard := SHARD.fullmatch(path.name)) and int(shard[1]) > 1:
        raise UserError(f"{path} is one of {int(shard[1])} parts: give the index of them all, *.index.json, beside it")
    with reading(path, "weights"), path.open("rb") as stream:
        start = stream.read(32)
    for beginning, what in OTHERS.items():
        if start.lower().startswith(beginning):
            raise UserError(f"{path} is {what}")
    if path.suffix == ".json":
        return _read_shards
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    # Before pickles, which begin with 0x80: so does the length of a header, of every 32nd file or so.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _read_safetensors
    if start.startswith(b"\x80"):
        return pth.read
    if path.suffix == ".safetensors":
        return _read_safetensors
    if path.suffix == ".npz":
        return _read_npz
    if path.name.endswith((".pth", ".pt", ".pth.tar", ".bin", ".ckpt")):
        return pth.read
    raise UserError(f"{path} is no file of weights: {KINDS} are read")


def _read_zip(path: Path, skipped: set[str]) -> Any:
    with reading(path, "NumPy .npz or torch.save"), open_zip(path) as archive:
        names = archive.namelist()
    of_torch = any(name.endswith("/data.pkl") for name in names)
    arrays = any(name.endswith(".npy") for name in names) or path.suffix == ".npz"
    return _read_npz(path, skipped) if arrays and not of_torch else pth.read(path, skipped)


def _read_npz(path: Path, skipped: set[str]) -> dict[str, np.ndarray]:
    del skipped  # there is nothing but arrays
    with reading(path, "NumPy .npz"), open_zip(path), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
        # NumPy knows no bfloat16 and stores it as two opaque bytes.
        return {name: x.view(jnp.bfloat16) if x.dtype == np.dtype("V2") else x for name, x in arrays.items()}


def _read_safetensors(path: Path, skipped: set[str]) -> dict[str, np.ndarray]:
    del skipped  # there is nothing but arrays
    with reading(path, "safetensors"):
        return safetensors.numpy.load_file(path)


def _zarr_arrays(directory: Path) -> list[str]:
    """Directories of arrays in a checkpoint of big_vision's trainer, ~ for /; only the parameters, if they say so."""
    with contextlib.suppress(OSError):
        names = [place.name for place in directory.iterdir() if "~" in place.name and (place / ".zarray").is_file()]
        return [name for name in names if name.startswith("params~")] or names
    return []


def _read_zarr(path: Path, skipped: set[str]) -> dict[str, np.ndarray]:
    import tensorstore  # which Flax brings along

    del skipped  # there is nothing but arrays
    with reading(path, "big_vision checkpoint"):
        places = {name: {"driver": "file", "path": str(path / name)} for name in _zarr_arrays(path)}
        opened = {name: tensorstore.open({"driver": "zarr", "kvstore": place}) for name, place in places.items()}
        return {name.replace("~", "/"): np.asarray(array.result().read().result()) for name, array in opened.items()}


def _read_shards(path: Path, skipped: set[str]) -> dict[str, Any]:
    """The arrays of all files that an index of shards, as Hugging Face's libraries write it, lists by array."""
    with reading(path, "*.index.json"):
        places = json.loads(path.read_text())["weight_map"]
        if not all(isinstance(file, str) and file and Path(file).name == file for file in places.values()):
            raise RefusedError("its weight_map does not name files that lie beside it")
    arrays: dict[str, Any] = {}
    for file in sorted(set(places.values())):
        shard = path.with_name(file)
        with reading(shard, "weights"), shard.open("rb") as stream:
            start = stream.read(9)
        found = (_read_safetensors if start[8:] == b"{" else pth.read)(shard, skipped)
        lacking = [name for name, place in places.items() if place == file and name not in found]
        if lacking or arrays.keys() & found.keys():
            what = f"lacks {first_few(lacking)}" if lacking else "has arrays that another part has, too"
            raise UserError(f"{shard}, a part of {path.name}, {what}")
        arrays |= found
    return arrays
