"""A workdir belongs to one run, to one data set, and to one job at a time; the processes of a job share it."""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from lape_jax import atomic
from lape_jax.data.example import Source
from lape_jax.errors import UserError
from lape_jax.parallel import hosts

DATA = "data.json"
SECONDS = 10  # after which a network file system should show what was written


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """Makes the directory if need be, and holds it until the end; the system lets go of it if the process dies.

    Process 0 does so for all processes of a run, which wait for its verdict.

    Raises:
        UserError: it cannot be written, another run trains in it, or it is not the same directory for all processes.
    """
    handle, error = None, None
    if jax.process_index() == 0:
        try:
            handle = _lock(workdir)
        except UserError as refused:
            error = refused
    try:
        hosts.fail_together(error)
        if jax.process_count() > 1:
            _check_shared(workdir)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(workdir: Path) -> int:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe_{os.getpid()}"
        probe.touch()
        probe.unlink()
        handle = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"workdir {str(workdir)!r} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another process trains in workdir {str(workdir)!r}: wait for it, or use another") from None
    return handle


def _check_shared(workdir: Path) -> None:
    """Lets all processes look for a file of process 0."""
    token = workdir / hosts.gather(f".shared_{os.getpid()}_{time.time_ns()}")[0]
    if jax.process_index() == 0:
        token.touch()
    hosts.barrier("shared workdir")
    end = time.monotonic() + SECONDS
    while not token.exists() and time.monotonic() < end:
        time.sleep(0.1)
    unseen = UserError(f"workdir {str(workdir)!r} is not that of process 0: it must lie where all processes see it")
    try:
        hosts.fail_together(None if token.exists() else unseen)
    finally:
        if jax.process_index() == 0:
            token.unlink()


def compare_data(workdir: Path, train: Source, val: Source) -> list[str]:
    """How the data differ from those that the run in `workdir` has had so far, one line per difference.

    Raises:
        UserError: the classes are others, so that labels would change their meaning; or the processes of this run see
            different data.
    """
    now = _identity(train, val)
    _check_same(now)
    try:
        before = json.loads((workdir / DATA).read_text())
    except (OSError, ValueError):
        return []
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
        atomic.write(workdir / DATA, json.dumps(_identity(train, val)) + "\n")


def _identity(train: Source, val: Source) -> dict:
    return {"train": len(train), "val": len(val), "classes": list(train.classes)}


def _check_same(data: dict) -> None:
    classes = hashlib.sha256(json.dumps(data["classes"]).encode()).hexdigest()[:8]
    shown = f"{data['train']} + {data['val']} examples of {len(data['classes'])} classes (their names: {classes})"
    first, *others = hosts.gather(shown)
    for index, other in enumerate(others, start=1):
        if other != first:
            raise UserError(f"process {index} sees other data than process 0: {other}, not {first}")
