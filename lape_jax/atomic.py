"""Files that are whole or not there, whenever the writing ends: at its end, by an error, a kill, or a power cut."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lape_jax.errors import UserError


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """The name of a file to write, which becomes `path` once its content is on the disk, or never.

    What a kill leaves of it is overwritten by the next one who writes `path`.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)  # the name, too
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` when it is complete, see `beside`."""
    with beside(path) as partial, partial.open("wb") as file:
        yield file


def write(path: Path, content: str | bytes) -> None:
    """Writes a whole file (texts in UTF-8), see `beside`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
