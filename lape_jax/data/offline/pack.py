"""Writes a data set as a pack (`lape_jax.data.packed`): whole images of a modest size, decoded.

Until all files are there, everything lies in OUT.incomplete, with a note beside each finished one; then the directory
gets its name. So a pack whose writing is killed at any moment goes on where it was, ends with the same bytes, and does
not look whole before it is.
"""

import json
import os
import shlex
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lape_jax.data import canvas, decode, packed
from lape_jax.data.ahead import Ahead
from lape_jax.data.corrupt import CorruptImage, CorruptLog
from lape_jax.data.example import Example, Source
from lape_jax.data.offline import parts
from lape_jax.data.offline.splits import DataSet
from lape_jax.errors import UserError

# Images per file: what is lost when the writing is killed. ImageNet becomes 79 files of 2.5 GB with side 256.
SHARD = 16384
SIDES = (8, 2048)  # smallest and largest of a canvas


class Packed(NamedTuple):
    """An image as it is written: rows of a canvas, and its entry in the index; whether EXIF noted an orientation."""

    rows: np.ndarray
    entry: tuple[int, ...]
    turned: bool


def copy(
    data: DataSet,
    wanted: str,
    out: str,
    *,
    side: int,
    threads: int,
    max_corrupt: int,
    orientation: str,
    say: Callable[[str], None] = print,
) -> None:
    """Packs the splits `wanted` ("a,b", or "" for all) of a data set as the directory `out`, and says how to use it.

    Raises:
      UserError: the data set cannot be read, or as in `write`.
    """
    splits = {split: data.open(split) for split in data.split_names(wanted)}
    if data.kind != "tfds":
        parts.check_outside(out, data.path)
    options = {"origin": data.title(), "side": side, "orientation": orientation}
    write(splits, Path(out), options, threads=threads, max_corrupt=max_corrupt, say=say)
    say(f"look it over: python -m lape_jax.prepare check --path={shlex.quote(out)}")


def write(
    splits: Mapping[str, Source],
    out: Path,
    options: Mapping[str, Any],
    *,
    threads: int,
    max_corrupt: int,
    shard_size: int = SHARD,
    say: Callable[[str], None] = print,
) -> None:
    """Writes (or goes on writing) the pack `out`.

    Args:
      splits: name -> source, all with the same classes.
      options: side of the canvases, orientation (view | stored) and origin, what the data set is called.
      threads: how many images are decoded at a time.
      max_corrupt: how many images that cannot be read are left out, over all splits, before that is an error.
      say: is given lines about progress, sizes and time.

    Raises:
      UserError: something else is there, or another process writes it; too many images cannot be read; or the disk
        cannot be written.
    """
    work = out.with_name(out.name + packed.UNFINISHED)
    options = {**options, "shard_size": shard_size}
    options["splits"] = {split: parts.fingerprint(source) for split, source in splits.items()}
    try:
        if out.exists() and not packed.is_pack(str(out)) and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out={out} is there already, and is no pack: choose another, or delete it")
        if packed.is_pack(str(out)):
            parts.compare(options, out)
            say(f"{out} is there already, whole")
            return
        with parts.claim(work):
            (work / "notes").mkdir(exist_ok=True)
            (work / "set").mkdir(exist_ok=True)
            if (work / parts.OPTIONS).exists():
                parts.compare(options, work)
            parts.write_text(work / parts.OPTIONS, json.dumps(options))
            log = CorruptLog(max_corrupt, "--max-corrupt")
            notes = _write_shards(splits, work, options, threads, log, say)
            _describe(work / "set", splits, options, notes, log.reasons)
            os.rename(work / "set", out)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error


def _describe(
    directory: Path,
    splits: Mapping[str, Source],
    options: Mapping[str, Any],
    notes: Mapping[str, list[dict[str, Any]]],
    left_out: Mapping[str, str],
) -> None:
    """Makes a pack of the files in a directory."""
    keys = ("name", "examples", "bytes", "index_crc")
    about = {"format": packed.FORMAT} | {key: options[key] for key in ("side", "orientation", "origin")}
    about["turned"] = sum(note["turned"] for split in notes.values() for note in split)
    about["classes"] = next(iter(splits.values())).classes
    about["left_out"] = left_out
    about["splits"] = {split: [{key: note[key] for key in keys} for note in found] for split, found in notes.items()}
    parts.write_text(directory / parts.OPTIONS, json.dumps(options))
    parts.write_text(directory / packed.FILE, json.dumps(about, indent=1))


def _write_shards(
    splits: Mapping[str, Source],
    work: Path,
    options: Mapping[str, Any],
    threads: int,
    log: CorruptLog,
    say: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """Makes the files that have no note yet, and returns the notes of all: split -> in order."""
    notes: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    progress = parts.Progress(sum(map(len, splits.values())), say)
    for split, source in splits.items():
        ranges = parts.cut(len(source), options["shard_size"])
        for number, indices in enumerate(ranges):
            name = f"{split}-{number:05d}-of-{len(ranges):05d}"
            note = _read_note(work, name)
            if note is None:
                made = _made(source, indices, options, threads, progress)
                note = _write_shard(work / "set" / name, made, log)
                parts.write_text(work / "notes" / f"{name}.json", json.dumps(note))
            else:
                progress.skip(len(indices))
                for image, reason in note["corrupt"].items():
                    log.add(CorruptImage(image, reason))
            if not note["examples"]:
                raise UserError(f"none of the images {indices[0]} to {indices[-1]} of split {split!r} can be read")
            notes[split].append(note)
        images, size = (sum(note[key] for note in notes[split]) for key in ("examples", "bytes"))
        lost = sum(len(note["corrupt"]) for note in notes[split])
        line = f"{split}: {images:,} images, {size / 1e6:,.1f} MB, {size / images / 1e3:,.1f} kB each"
        say(f"{line}, {lost} left out" if lost else line)
    say(progress.total_line())
    return notes


def _made(
    source: Source, indices: range, options: Mapping[str, Any], threads: int, progress: parts.Progress
) -> Iterator[Packed | CorruptImage]:
    """The images of these indices, made by threads; CorruptImage in the place of those that cannot be read."""

    def make(index: int) -> Packed | CorruptImage:
        try:
            return pack(source[index], options["side"], options["orientation"])
        except CorruptImage as error:
            return error

    with Ahead(make, indices, threads) as found:
        for one in found:
            progress.step()
            yield one


def pack(example: Example, side: int, orientation: str) -> Packed:
    """An image reduced to fit side x side.

    Raises:
      CorruptImage: it cannot be read.
    """
    found = decode.examine(example.image, canvas.CHANNELS, example.name, orientation)
    pixels = canvas.fit(found.pixels, side)
    rows = canvas.painted(pixels, side)
    entry = (*pixels.shape[:2], *found.pixels.shape[:2], example.label, zlib.crc32(rows))
    return Packed(rows, entry, found.orientation != 1)


def _write_shard(path: Path, images: Iterator[Packed | CorruptImage], log: CorruptLog) -> dict[str, Any]:
    """Writes images and their index, all or nothing each, and returns the note on them."""
    pixels, index = (path.with_name(path.name + suffix) for suffix in (packed.PIXELS, packed.INDEX_FILE))
    entries, corrupt, turned, size = [], {}, 0, 0
    partial = pixels.with_name(f"{pixels.name}.partial")
    with partial.open("wb") as file:
        for image in images:
            if isinstance(image, CorruptImage):
                log.add(image)
                corrupt[image.name] = image.reason
            else:
                file.write(image.rows)
                entries.append(image.entry)
                turned, size = turned + image.turned, size + image.rows.nbytes
    parts.publish(partial, pixels)
    partial = index.with_name(f"{index.name}.partial")
    with partial.open("wb") as file:
        np.save(file, np.array(entries, packed.INDEX))
    crc = zlib.crc32(partial.read_bytes())
    parts.publish(partial, index)
    note = {"name": path.name, "examples": len(entries), "bytes": size, "index_crc": crc}
    return note | {"corrupt": corrupt, "turned": turned}


def _read_note(work: Path, name: str) -> dict[str, Any] | None:
    """Of files that are done."""
    path = work / "notes" / f"{name}.json"
    files = [work / "set" / (name + suffix) for suffix in (packed.PIXELS, packed.INDEX_FILE)]
    return json.loads(path.read_text()) if path.exists() and all(file.exists() for file in files) else None
