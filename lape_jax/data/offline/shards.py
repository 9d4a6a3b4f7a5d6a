"""Writes a data set anew, shard by shard, so that it can be interrupted.

Each shard is a function of the source and the options alone. Until all are there, everything lies in WHOLE.incomplete,
with a note beside each finished shard; then the directory gets its name. So a copy whose writing is killed at any
moment goes on where it was, ends with the same bytes, and does not look whole before it is.
"""

import abc
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lape_jax import atomic
from lape_jax.data import ahead
from lape_jax.data.corrupt import CorruptImage, CorruptLog
from lape_jax.data.example import Source
from lape_jax.data.offline import parts
from lape_jax.data.packed import UNFINISHED
from lape_jax.errors import UserError

Note = dict[str, Any]  # on a shard: "corrupt", reasons by name, and what the form notes


class Form(abc.ABC):
    """What a copy is made of.

    Attributes:
        whole: the directory of the whole copy.
        lock: the directory by which other processes are kept from writing it, too.
        shard_size: examples per shard, which is what is lost when the writing is killed.
        counted: the key of a note that says how many examples the shard has.
        suffixes: of the files of a shard.
    """

    whole: Path
    lock: Path
    shard_size: int
    counted: str
    suffixes: Sequence[str] = ("",)

    @property
    def work(self) -> Path:
        """The directory of what there is until the copy is whole."""
        return self.whole.with_name(f"{self.whole.name}{UNFINISHED}")

    def is_whole(self) -> bool:
        return self.whole.exists()

    @abc.abstractmethod
    def name(self, split: str, number: int, count: int) -> str:
        """What a shard's files are called, without suffix: the `number`-th from 0, of `count`."""

    @abc.abstractmethod
    def make(self, source: Source, index: int) -> Any:
        """An example as it is written, or CorruptImage is raised. Runs in threads."""

    @abc.abstractmethod
    def write(self, path: Path, made: Iterator[Any]) -> Note:
        """Writes the files of a shard (`path` and a suffix each), each whole or not at all; returns a note on it."""

    @abc.abstractmethod
    def line(self, notes: Sequence[Note]) -> str:
        """What is to be said of a split when it is done."""

    @abc.abstractmethod
    def describe(self, directory: Path, made: "Made") -> None:
        """Makes a whole copy of the shards in a directory."""


class Made(NamedTuple):
    """All shards of a copy."""

    classes: Sequence[str]
    options: Note  # see `write`
    notes: Mapping[str, Sequence[Note]]  # by split, in order
    left_out: Mapping[str, str]  # reasons by name


def begun(form: Form) -> bool:
    """Whether `write` has begun this copy, and perhaps finished it."""
    return form.is_whole() or (form.work / parts.OPTIONS).exists()


def write(
    form: Form,
    splits: Mapping[str, Source],
    options: Mapping[str, Any],
    how: parts.How,
) -> None:
    """Writes (or goes on writing) a copy.

    Args:
        splits: name -> source, all with the same classes.
        options: all that the result depends on, beside the images; a copy begun with others is not gone on with.

    Raises:
        UserError: another copy is there or being written, too many images cannot be read, or the disk cannot be
            written.
    """
    options = {**options, "shard_size": form.shard_size}
    options["splits"] = {split: parts.fingerprint(source) for split, source in splits.items()}
    work = form.work
    try:
        with parts.claim(form.lock):
            if form.is_whole():
                parts.compare(options, form.whole)
                how.say(f"{form.whole} is there already, whole")
            else:
                (work / "notes").mkdir(parents=True, exist_ok=True)
                (work / "set").mkdir(exist_ok=True)
                if (work / parts.OPTIONS).exists():
                    parts.compare(options, work)
                atomic.write(work / parts.OPTIONS, json.dumps(options))
                log = CorruptLog(how.max_corrupt, "--max-corrupt")
                notes = _write_shards(form, splits, how, log)
                classes = next(iter(splits.values())).classes
                form.describe(work / "set", Made(classes, options, notes, log.reasons))
                os.rename(work / "set", form.whole)
            shutil.rmtree(work, ignore_errors=True)  # also what is left of a process that was killed right here
    except OSError as error:
        raise UserError(f"{form.whole} cannot be written: {error.strerror or error}") from error


def _write_shards(form: Form, splits: Mapping[str, Source], how: parts.How, log: CorruptLog) -> dict[str, list[Note]]:
    """Makes the shards that have no note yet, and returns the notes of all: split -> in order."""
    notes: dict[str, list[Note]] = {split: [] for split in splits}
    progress = parts.Progress(sum(map(len, splits.values())), how.say)
    for split, source in splits.items():
        ranges = parts.cut(len(source), form.shard_size)
        for number, indices in enumerate(ranges):
            name = form.name(split, number, len(ranges))
            note = _read_note(form, name)
            if note is None:
                corrupt: dict[str, str] = {}
                made = _readable(form, source, indices, how.threads, progress, log, corrupt)
                note = form.write(form.work / "set" / name, made) | {"corrupt": corrupt}
                atomic.write(form.work / "notes" / f"{name}.json", json.dumps(note))
            else:
                progress.skip(len(indices))
                for image, reason in note["corrupt"].items():
                    log.add(CorruptImage(image, reason))
            if not note[form.counted]:
                raise UserError(f"none of the images {indices[0]} to {indices[-1]} of split {split!r} can be read")
            notes[split].append(note)
        lost = sum(len(note["corrupt"]) for note in notes[split])
        how.say(f"{split}: {form.line(notes[split])}" + (f", {lost} left out" if lost else ""))
    how.say(progress.total_line())
    return notes


def _readable(
    form: Form,
    source: Source,
    indices: range,
    threads: int,
    progress: parts.Progress,
    log: CorruptLog,
    corrupt: dict[str, str],
) -> Iterator[Any]:
    """What the form makes of these examples, in threads; those that cannot be read are noted."""

    def make(index: int) -> Any:
        try:
            return form.make(source, index)
        except CorruptImage as error:
            return error

    for made in ahead.each(make, indices, threads):
        progress.step()
        if isinstance(made, CorruptImage):
            log.add(made)
            corrupt[made.name] = made.reason
        else:
            yield made


def _read_note(form: Form, name: str) -> Note | None:
    """The note on a shard that is done."""
    path = form.work / "notes" / f"{name}.json"
    files = [form.work / "set" / f"{name}{suffix}" for suffix in form.suffixes]
    return json.loads(path.read_text()) if path.exists() and all(file.exists() for file in files) else None
