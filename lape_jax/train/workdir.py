"""A workdir belongs to one run, to one data set, and to one process at a time."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from lape_jax.data.example import Source
from lape_jax.errors import UserError

DATA = "data.json"


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """Makes the directory if need be, and holds it until the end; the system lets go of it if the process dies.

    Raises:
        UserError: it cannot be written, or another process trains in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe_{os.getpid()}"
        probe.touch()
        probe.unlink()
        handle = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"workdir {str(workdir)!r} cannot be written: {error.strerror}") from None
    try:
        if jax.process_index() == 0:  # the processes of one run share it
            _lock(handle, workdir)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, workdir: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process trains in workdir {str(workdir)!r}: wait for it, or use another") from None


def compare_data(workdir: Path, train: Source, val: Source) -> list[str]:
    """How the data differ from those that the run in `workdir` has had so far, one line per difference.

    Raises:
        UserError: the classes are others, so that labels would change their meaning.
    """
    try:
        before = json.loads((workdir / DATA).read_text())
    except (OSError, ValueError):
        return []
    now = _identity(train, val)
    for old, new in zip(before["classes"] + [None], now["classes"] + [None], strict=False):
        if old != new:
            raise UserError(
                f"{workdir} holds a run on other classes: {old!r} was there where {new!r} is now; use another "
                f"--workdir, or the data it was started with"
            )
    return [
        f"there were {before[split]} {split} examples so far, and are {now[split]} from here on: the order changes"
        for split in ("train", "val")
        if before[split] != now[split]
    ]


def write_data(workdir: Path, train: Source, val: Source) -> None:
    """Notes the data for `compare_data`, all or nothing."""
    if jax.process_index() == 0:
        partial = workdir / f"{DATA}.partial"
        partial.write_text(json.dumps(_identity(train, val)) + "\n")
        partial.replace(workdir / DATA)


def _identity(train: Source, val: Source) -> dict:
    return {"train": len(train), "val": len(val), "classes": list(train.classes)}
