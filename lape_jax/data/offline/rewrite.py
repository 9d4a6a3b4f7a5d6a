"""Writes a data set anew, image by image, as a TFDS data set in array_record that is read without TensorFlow.

    OUT/NAME/1.0.0/NAME-SPLIT.array_record-00000-of-00314 ..., and its description

Each shard is a function of the source and the options alone. Until all are there, everything lies in
OUT/NAME/1.0.0.incomplete, with a note beside each finished shard; then the directory gets its name. So a copy that is
killed at any moment goes on where it was, ends with the same bytes, and does not look whole before it is.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lape_jax.data.corrupt import CorruptImage, CorruptLog
from lape_jax.data.example import Example, Source
from lape_jax.data.offline import parts, tfds_files
from lape_jax.errors import UserError

# Examples per shard: what is lost when the copy is killed. ImageNet becomes 326 files of about 100 MB.
SHARD = 4096
VERSION = "1.0.0"
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
        "splits": {split: parts.fingerprint(source) for split, source in splits.items()},
    }
    classes = next(iter(splits.values())).classes
    tfds_files.check_classes(classes)
    done, work = _places(out, name)
    try:
        with parts.claim(out / name):
            if done.exists():
                parts.compare(options, done)
                say(f"{done} is there already, whole")
            else:
                (work / "notes").mkdir(parents=True, exist_ok=True)
                (work / "set").mkdir(exist_ok=True)
                if (work / parts.OPTIONS).exists():
                    parts.compare(options, work)
                parts.write_text(work / parts.OPTIONS, json.dumps(options))
                log = CorruptLog(max_corrupt, "--max-corrupt")
                making = _Making(transform, learned, target)
                notes = _write_shards(splits, work, name, making, shard_size, threads, log, say)
                for file, text in (files or {}).items():
                    parts.write_text(work / "set" / file, text)
                shards = {split: [tfds_files.Shard(n["records"], n["bytes"]) for n in notes[split]] for split in splits}
                about += f"; {len(log.reasons)} that cannot be read are left out." if log.reasons else "."
                parts.write_text(
                    work / "set" / parts.OPTIONS, json.dumps(options | {"left_out": log.reasons}, indent=2)
                )
                tfds_files.write_description(work / "set", name, VERSION, shards, classes, about, target)
                os.rename(work / "set", done)
            shutil.rmtree(work, ignore_errors=True)  # also what is left of a process that was killed right here
    except OSError as error:
        raise UserError(f"{out / name} cannot be written: {error.strerror or error}") from error
    return done


def begun(out: Path, name: str) -> bool:
    """Whether `write` has begun this copy, and perhaps finished it."""
    done, work = _places(out, name)
    return done.exists() or (work / parts.OPTIONS).exists()


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
    progress = parts.Progress(sum(len(source) for source in splits.values()), say)
    pool = ThreadPoolExecutor(threads)
    try:
        for split, source in splits.items():
            ranges = parts.cut(len(source), shard_size)
            for number, indices in enumerate(ranges):
                file = tfds_files.shard_name(name, split, number, len(ranges))
                note = _read_note(work, file)
                if note is None:
                    note = {"before": 0, "after": 0, "corrupt": {}}
                    records = _records(source, indices, making, pool, note, log, progress)
                    shard = tfds_files.write_shard(work / "set" / file, records)
                    note |= {"records": shard.records, "bytes": shard.bytes}
                    parts.write_text(work / "notes" / f"{file}.json", json.dumps(note))
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
    progress: parts.Progress,
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


def _read_note(work: Path, file: str) -> dict[str, Any] | None:
    path = work / "notes" / f"{file}.json"
    return json.loads(path.read_text()) if path.exists() and (work / "set" / file).exists() else None


def _sizes(notes: list[dict[str, Any]]) -> str:
    images, before, after = (sum(note[key] for note in notes) for key in ("records", "before", "after"))
    left_out = sum(len(note["corrupt"]) for note in notes)
    line = f"{images:,} images, {before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB ({after / before:.0%})"
    return f"{line}, {left_out} left out" if left_out else line
