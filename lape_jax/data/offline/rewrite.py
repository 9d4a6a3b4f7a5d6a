"""Writes a data set anew, image by image, as a TFDS data set in array_record that is read without TensorFlow.

    OUT/NAME/1.0.0/NAME-SPLIT.array_record-00000-of-00314 ..., and its description

Each shard is a function of the source and the options alone. Until all are there, everything lies in
OUT/NAME/1.0.0.incomplete, with a note beside each finished shard; then the directory gets its name. So a copy that is
killed at any moment goes on where it was, ends with the same bytes, and does not look whole before it is.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lape_jax.data.corrupt import CorruptImage, CorruptLog
from lape_jax.data.example import Example, Source
from lape_jax.data.offline import tfds_files
from lape_jax.errors import UserError

# Examples per shard: what is lost when the copy is killed. ImageNet becomes 326 files of about 100 MB.
SHARD = 4096
VERSION = "1.0.0"
OPTIONS = "options.json"
PAUSE = 10.0  # seconds between two lines about progress
Item = TypeVar("Item")  # with the attributes image, bytes, and name
Transform = Callable[[Item], Item]


def _label(example: Example) -> int:
    return example.label


class _Making(NamedTuple):
    """How a record is made: see `write`."""

    transform: Transform
    learned: Callable[[Item], int | bytes]
    target: str


def write(
    splits: Mapping[str, Source],
    out: Path,
    name: str,
    transform: Transform,
    *,
    target: str = tfds_files.LABEL,
    learned: Callable[[Item], int | bytes] = _label,
    options: dict[str, Any],
    about: str,
    threads: int,
    max_corrupt: int,
    files: Mapping[str, str] | None = None,
    shard_size: int = SHARD,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes (or goes on writing) out/name/1.0.0, and returns that directory.

    Args:
      splits: name -> source of encoded images, and maps if these are learned, all with the same classes.
      transform: what is read -> what is written, under the name of the former; runs in threads. CorruptImage: leave it
        out.
      target: the feature beside the image, `tfds_files.LABEL`, `tfds_files.MAP` or `tfds_files.NUMBER`.
      learned: what is read -> that feature, a class, an encoded map or a number.
      options: all that the result depends on, beside the images; a copy that was begun with others is not gone on with.
      about: the description of the data set, a sentence without its full stop.
      threads: how many images are read at a time.
      max_corrupt: how many images that cannot be read are left out, over all splits, before that is an error.
      files: texts to be written beside the records, by the files' names.
      say: is given lines about progress, sizes and time.

    Raises:
      UserError: another copy is there or being written, too many images cannot be read, or the disk cannot be written.
    """
    options = options | {
        "shard_size": shard_size,
        "splits": {split: _fingerprint(source) for split, source in splits.items()},
    }
    classes = next(iter(splits.values())).classes
    tfds_files.check_classes(classes)
    done, work = _places(out, name)
    try:
        with _claim(out / name):
            if done.exists():
                _compare(options, done)
                say(f"{done} is there already, whole")
            else:
                (work / "notes").mkdir(parents=True, exist_ok=True)
                (work / "set").mkdir(exist_ok=True)
                if (work / OPTIONS).exists():
                    _compare(options, work)
                tfds_files.write_text(work / OPTIONS, json.dumps(options))
                log = CorruptLog(max_corrupt, "--max-corrupt")
                making = _Making(transform, learned, target)
                notes = _write_shards(splits, work, name, making, shard_size, threads, log, say)
                for file, text in (files or {}).items():
                    tfds_files.write_text(work / "set" / file, text)
                shards = {split: [tfds_files.Shard(n["records"], n["bytes"]) for n in notes[split]] for split in splits}
                about += f"; {len(log.reasons)} that cannot be read are left out." if log.reasons else "."
                tfds_files.write_text(work / "set" / OPTIONS, json.dumps(options | {"left_out": log.reasons}, indent=2))
                tfds_files.write_description(work / "set", name, VERSION, shards, classes, about, target)
                os.rename(work / "set", done)
            shutil.rmtree(work, ignore_errors=True)  # also what is left of a process that was killed right here
    except OSError as error:
        raise UserError(f"{out / name} cannot be written: {error.strerror or error}") from error
    return done


def begun(out: Path, name: str) -> bool:
    """Whether `write` has begun this copy, and perhaps finished it."""
    done, work = _places(out, name)
    return done.exists() or (work / OPTIONS).exists()


def check_outside(out: str, path: str) -> None:
    """Raises UserError if the copy would lie in the data set at `path`."""
    if Path(out).resolve().is_relative_to(Path(path).resolve()):
        raise UserError(f"--out={out} lies in the data set itself: choose another directory")


def _places(out: Path, name: str) -> tuple[Path, Path]:
    """The directory of the whole copy, and of what there is until then."""
    return out / name / VERSION, out / name / f"{VERSION}.incomplete"


def _write_shards(
    splits: Mapping[str, Source],
    work: Path,
    name: str,
    making: "_Making",
    shard_size: int,
    threads: int,
    log: CorruptLog,
    say: Callable[[str], None],
) -> dict[str, list[dict]]:
    """Makes the shards that have no note yet, and returns the notes of all: split -> in order."""
    notes = {split: [] for split in splits}
    progress = Progress(sum(len(source) for source in splits.values()), say)
    pool = ThreadPoolExecutor(threads)
    try:
        for split, source in splits.items():
            parts = _cut(len(source), shard_size)
            for number, indices in enumerate(parts):
                file = tfds_files.shard_name(name, split, number, len(parts))
                note = _read_note(work, file)
                if note is None:
                    note = {"before": 0, "after": 0, "corrupt": {}}
                    records = _records(source, indices, making, pool, note, log, progress)
                    shard = tfds_files.write_shard(work / "set" / file, records)
                    note |= {"records": shard.records, "bytes": shard.bytes}
                    tfds_files.write_text(work / "notes" / f"{file}.json", json.dumps(note))
                else:
                    progress.skip(len(indices))
                    for image, reason in note["corrupt"].items():
                        log.add(CorruptImage(image, reason))
                if not note["records"]:
                    raise UserError(f"none of the images {indices[0]} to {indices[-1]} of split {split!r} can be read")
                notes[split].append(note)
            say(f"{split}: {_sizes(notes[split])}")
    finally:
        pool.shutdown(cancel_futures=True)
    say(progress.total_line())
    return notes


def _records(
    source: Source,
    indices: range,
    making: "_Making",
    pool: ThreadPoolExecutor,
    note: dict[str, Any],
    log: CorruptLog,
    progress: "Progress",
) -> Iterator[bytes]:
    """The records of a shard, made in the threads of `pool`; fills in the note on it."""
    root = f"{getattr(source, 'root', '')}/"
    transform, learned, target = making

    def make(index: int) -> tuple[int, int, bytes] | CorruptImage:
        try:
            found = source[index]
            made = transform(found)
        except CorruptImage as error:
            return error
        sizes = (len(item.image) + _length(learned(item)) for item in (found, made))
        return *sizes, tfds_files.record(made.image, learned(made), found.name.removeprefix(root), target)

    for made in pool.map(make, indices):
        progress.step()
        if isinstance(made, CorruptImage):
            log.add(made)
            note["corrupt"][made.name] = made.reason
        else:
            note["before"] += made[0]
            note["after"] += made[1]
            yield made[2]


def _length(learned: int | bytes) -> int:
    return len(learned) if isinstance(learned, bytes) else 0


def _cut(count: int, size: int) -> list[range]:
    """0 .. count-1 in as few parts of at most `size` as possible, all equally long (or one shorter).

    >>> _cut(7, 3)
    [range(0, 2), range(2, 4), range(4, 7)]
    """
    parts = -(-count // size)
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def _read_note(work: Path, file: str) -> dict[str, Any] | None:
    path = work / "notes" / f"{file}.json"
    return json.loads(path.read_text()) if path.exists() and (work / "set" / file).exists() else None


def _fingerprint(source: Source) -> str:
    """Tells data sets apart by their classes, their number of examples and the names of their files."""
    text = json.dumps([source.classes, len(source), getattr(source, "files", None)])
    return hashlib.sha256(text.encode()).hexdigest()


def _compare(options: dict[str, Any], directory: Path) -> None:
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
def _claim(directory: Path) -> Iterator[None]:
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


def _sizes(notes: list[dict[str, Any]]) -> str:
    images, before, after = (sum(note[key] for note in notes) for key in ("records", "before", "after"))
    left_out = sum(len(note["corrupt"]) for note in notes)
    line = f"{images:,} images, {before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB ({after / before:.0%})"
    return f"{line}, {left_out} left out" if left_out else line


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
