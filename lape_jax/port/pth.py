"""Reading what `torch.save` wrote, without PyTorch and without running anything that the file asks for.

Since PyTorch 1.6 it is a zip archive (stored, not compressed) with one folder in it:

    NAME/data.pkl     a pickle in which tensors are (storage, offset, size, stride)
    NAME/data/KEY     the raw memory of each storage
    NAME/byteorder    "little" or "big" (absent: little)

Before that it was a sequence of pickles (magic number, protocol, system, object, list of storage keys) followed by the
storages, each with its number of elements in front. Both are read; the tar files from before PyTorch 0.2 are not.
Source: torch/serialization.py of PyTorch 2.
"""

import io
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from lape_jax.port.archive import RefusedError, open_zip, reading
from lape_jax.port.pickled import Storage, storage_id, unpickle

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read(path: Path, skipped: set[str] | None = None) -> Any:
    """The object in the file: containers, numbers and text as they are, tensors as (read-only or own) NumPy arrays.

    Anything else is an `Opaque` value, see `lape_jax.port.pickled`; `skipped` gets the names of its classes.

    Raises:
        UserError: the file is damaged, is not one of torch.save, or refers to something that runs code.
    """
    with reading(path, "torch.save"):
        with path.open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
            if not zipped:
                stream.seek(0)
                return _read_legacy(stream, path.stat().st_size, skipped)
        with open_zip(path) as archive:
            return _read_zip(archive, skipped)


def _read_zip(archive: ZipFile, skipped: set[str] | None) -> Any:
    names = frozenset(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedError(f"it is a zip archive with {len(pickles)} data.pkl in it, and torch.save writes one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise RefusedError("it is a program of torch.jit.save, and not weights: save its state_dict() by torch.save")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise RefusedError("it was written on a big-endian machine, which is not supported")
    members: dict[str, bytes] = {}

    def storage(pid: Any) -> Storage:
        dtype, key, elements, size = storage_id(pid)
        name = f"{folder}data/{key}"
        if name not in names:
            raise RefusedError(f"the storage {key!r} is missing from it")
        if archive.getinfo(name).file_size != size:
            raise RefusedError(f"the storage {key!r} should hold {elements} elements of {dtype}, and does not")
        if name not in members:
            members[name] = archive.read(name)
        return Storage(members[name], dtype)

    return unpickle(io.BytesIO(archive.read(pickles[0])), storage, skipped)


def _read_legacy(stream: io.BufferedIOBase, file_size: int, skipped: set[str] | None) -> Any:
    storages: dict[str, Storage] = {}
    unclaimed = file_size

    def storage(pid: Any) -> Storage:
        nonlocal unclaimed
        dtype, key, _, size = storage_id(pid)
        if key not in storages:
            unclaimed -= size
            if unclaimed < 0:
                raise RefusedError("it describes more values than it holds")
            storages[key] = Storage(bytearray(size), dtype)  # filled below; the tensors are views of it
        if storages[key].dtype != dtype or len(storages[key].memory) != size:
            raise RefusedError(f"the storage {key!r} is described in two ways")
        return storages[key]

    for expected in (MAGIC_NUMBER, PROTOCOL):
        if unpickle(stream, storage) != expected:
            raise RefusedError("it is a pickle, but not one of torch.save")
    if not unpickle(stream, storage)["little_endian"]:
        raise RefusedError("it was written on a big-endian machine, which is not supported")
    result = unpickle(stream, storage, skipped)
    keys = unpickle(stream, storage)
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise RefusedError("the storages that it lists are not those that its tensors need")
    for key in keys:
        memory, dtype = storages[key]
        elements = int.from_bytes(stream.read(8), "little")
        if elements * dtype.itemsize != len(memory) or stream.readinto(memory) != len(memory):
            raise RefusedError(f"the storage {key!r} is cut short, or has another size than its tensors say")
    return result
