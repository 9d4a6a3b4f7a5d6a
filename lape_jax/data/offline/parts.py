"""What writing a data set anew in parts needs, so that it can be interrupted."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lape_jax.data.example import Source
from lape_jax.errors import UserError

OPTIONS = "options.json"
Say = Callable[[str], None]  # is given lines about progress, sizes and time


@dataclasses.dataclass(frozen=True)
class How:
    """How a copy is written, which does not change what is in it.

    Attributes:
        threads: how many images are read at a time.
        max_corrupt: how many that cannot be read are left out, over all splits, before that is an error.
        say: is given lines about progress.
    """

    threads: int
    max_corrupt: int = 0
    say: Say = print


PAUSE = 10.0  # seconds between two lines about progress


def check_outside(out: str, path: str) -> None:
    """Raises UserError if the copy would lie in the data set at `path`."""
    if Path(out).resolve().is_relative_to(Path(path).resolve()):
        raise UserError(f"--out={out} lies in the data set itself: choose another directory")


def cut(count: int, size: int) -> list[range]:
    """0 .. count-1 in as few parts of at most `size` as possible, all equally long (or one shorter).

    >>> cut(7, 3)
    [range(0, 2), range(2, 4), range(4, 7)]
    """
    parts = -(-count // size)
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def fingerprint(source: Source) -> str:
    """Tells data sets apart by their classes, their number of examples and the names of their files."""
    text = json.dumps([source.classes, len(source), getattr(source, "files", None)])
    return hashlib.sha256(text.encode()).hexdigest()


def compare(options: dict[str, Any], directory: Path) -> None:
    """Raises UserError unless the copy in `directory` was begun with these options."""
    path = directory / OPTIONS
    if not path.exists():
        raise UserError(f"{directory} holds another data set: choose another --as or --out")
    before = {"orientation": "stored"} | json.loads(path.read_text())  # which was all that there was at first
    for key, value in options.items():
        if before.get(key) != value:
            difference = (
                "its source had other splits, classes or files"
                if key == "splits"
                else f"{key} was {before.get(key)!r} and is {value!r} now"
            )
            raise UserError(
                f"{directory} was written with other options ({difference}): use the same, another --as or --out, or "
                f"delete it"
            )


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Makes the directory if need be, and keeps other processes from writing a copy into it."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing to {directory}: wait for it") from None
        yield
    finally:
        os.close(handle)


class Progress:
    """Says from time to time how many of the images are done, and how fast that goes."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.say = total, say
        self.found = self.made = 0
        self.start = self.said = time.monotonic()

    def skip(self, count: int) -> None:
        """These examples were there already."""
        self.found += count

    def step(self) -> None:
        self.made += 1
        now = time.monotonic()
        if now - self.said >= PAUSE:
            self.said = now
            rate = self.made / (now - self.start)
            there = self.found + self.made
            left = (self.total - there) / rate
            self.say(f"{there:,} of {self.total:,} images, {rate:,.0f} images/s, {left / 60:.0f} min left")

    def total_line(self) -> str:
        seconds = time.monotonic() - self.start
        line = f"{self.made:,} images in {seconds:,.1f} s ({self.made / seconds:,.0f} images/s)"
        return f"{line}; {self.found:,} were there already" if self.found else line
