"""Writes a data set as a pack (`lape_jax.data.packed`): whole images of a modest size, decoded.

How it can be interrupted is in `lape_jax.data.offline.shards`.
"""

import dataclasses
import json
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lape_jax import atomic
from lape_jax.data import canvas, decode, packed
from lape_jax.data.example import Example, Source
from lape_jax.data.offline import parts, shards
from lape_jax.data.offline.splits import DataSet
from lape_jax.errors import UserError

SHARD = 16384  # images per file: ImageNet becomes 79 files of 2.5 GB with side 256
SIDES = (8, 2048)  # smallest and largest of a canvas


class Packed(NamedTuple):
    """An image as it is written: rows of a canvas, and its entry in the index; whether EXIF noted an orientation."""

    rows: np.ndarray
    entry: tuple[int, ...]
    turned: bool


def copy(data: DataSet, wanted: str, out: str, *, side: int, orientation: str, how: parts.How) -> None:
    """Packs the splits `wanted` ("a,b", or "" for all) of a data set as the directory `out`, and says how to use it.

    Raises:
      UserError: the data set cannot be read, or as in `write`.
    """
    splits = {split: data.open(split) for split in data.split_names(wanted)}
    if data.kind != "tfds":
        parts.check_outside(out, data.path)
    write(Pack(Path(out), side, orientation), splits, {"origin": data.title()}, how)
    how.say(f"look it over: python -m lape_jax.prepare check --path={shlex.quote(out)}")


@dataclasses.dataclass(frozen=True)
class Pack(shards.Form):
    """How a pack is written.

    Attributes:
        whole: the directory of the pack.
        side: the side of a canvas, in pixels.
        orientation: view | stored.
    """

    whole: Path
    side: int
    orientation: str
    shard_size: int = SHARD
    counted = "examples"
    suffixes = (packed.PIXELS, packed.INDEX_FILE)

    @property
    def lock(self) -> Path:
        return self.work

    def is_whole(self) -> bool:
        return packed.is_pack(str(self.whole))

    def name(self, split: str, number: int, count: int) -> str:
        return f"{split}-{number:05d}-of-{count:05d}"

    def make(self, source: Source, index: int) -> Packed:
        return pack(source[index], self.side, self.orientation)

    def write(self, path: Path, made: Iterator[Packed]) -> shards.Note:
        pixels, index = (path.with_name(path.name + suffix) for suffix in self.suffixes)
        entries, turned, size = [], 0, 0
        with atomic.replacing(pixels) as file:
            for image in made:
                file.write(image.rows)
                entries.append(image.entry)
                turned, size = turned + image.turned, size + image.rows.nbytes
        with atomic.replacing(index) as file:
            np.save(file, np.array(entries, packed.INDEX))
        crc = zlib.crc32(index.read_bytes())
        return {"name": path.name, "examples": len(entries), "bytes": size, "index_crc": crc, "turned": turned}

    def line(self, notes: Sequence[shards.Note]) -> str:
        images, size = (sum(note[key] for note in notes) for key in ("examples", "bytes"))
        return f"{images:,} images, {size / 1e6:,.1f} MB, {size / images / 1e3:,.1f} kB each"

    def describe(self, directory: Path, made: shards.Made) -> None:
        keys = ("name", "examples", "bytes", "index_crc")
        about = {"format": packed.FORMAT} | {key: made.options[key] for key in ("side", "orientation", "origin")}
        about["turned"] = sum(note["turned"] for notes in made.notes.values() for note in notes)
        about["classes"] = made.classes
        about["left_out"] = made.left_out
        about["splits"] = {
            split: [{key: note[key] for key in keys} for note in notes] for split, notes in made.notes.items()
        }
        atomic.write(directory / parts.OPTIONS, json.dumps(made.options))
        atomic.write(directory / packed.FILE, json.dumps(about, indent=1))


def write(form: Pack, splits: Mapping[str, Source], options: Mapping[str, Any], how: parts.How) -> None:
    """Writes (or goes on writing) a pack, see `lape_jax.data.offline.shards.write`.

    Args:
      options: with "origin", what the data set is called.

    Raises:
      UserError: as there, or something else is in the pack's place.
    """
    out = form.whole
    if out.exists() and not form.is_whole() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already, and is no pack: choose another, or delete it")
    shards.write(form, splits, {**options, "side": form.side, "orientation": form.orientation}, how)


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
