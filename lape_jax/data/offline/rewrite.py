"""Writes a data set anew as a TFDS data set in array_record that is read without TensorFlow.

    OUT/NAME/1.0.0/NAME-SPLIT.array_record-00000-of-00314 ..., and its description

How it can be interrupted is in `lape_jax.data.offline.shards`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lape_jax import atomic
from lape_jax.data.example import Example, Source
from lape_jax.data.offline import parts, shards, tfds_files

VERSION = "1.0.0"
SHARD = 4096  # examples per file: ImageNet becomes 326 files of about 100 MB
Item = TypeVar("Item")  # with the attributes image, bytes, and name


def _label(example: Example) -> int:
    return example.label


def _same(item: Item) -> Item:
    return item


@dataclasses.dataclass(frozen=True)
class Records(shards.Form):
    """A TFDS data set out/title/1.0.0.

    Attributes:
        out, title: as above; `title` is NAME.
        about: the description of the data set, a sentence without its full stop.
        transform: what is read -> what is written, under the name of the former; in threads. CorruptImage: left out.
        target: the feature beside the image, `tfds_files.LABEL`, `tfds_files.MAP` or `tfds_files.NUMBER`.
        learned: what is read -> that feature, a class, an encoded map or a number.
        files: texts to be written beside the records, by the files' names.
    """

    out: Path
    title: str
    about: str
    transform: Callable[[Item], Item] = _same
    target: str = tfds_files.LABEL
    learned: Callable[[Item], int | bytes] = _label
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shard_size: int = SHARD
    counted = "records"

    @property
    def whole(self) -> Path:
        return self.out / self.title / VERSION

    @property
    def lock(self) -> Path:
        return self.out / self.title

    def name(self, split: str, number: int, count: int) -> str:
        return tfds_files.shard_name(self.title, split, number, count)

    def make(self, source: Source, index: int) -> tuple[int, int, bytes]:
        """Bytes before, bytes after, and the record."""
        found = source[index]
        made = self.transform(found)
        before, after = (len(item.image) + _length(self.learned(item)) for item in (found, made))
        name = found.name.removeprefix(f"{getattr(source, 'root', '')}/")
        return before, after, tfds_files.record(made.image, self.learned(made), name, self.target)

    def write(self, path: Path, made: Iterator[tuple[int, int, bytes]]) -> shards.Note:
        note = {"before": 0, "after": 0}

        def records() -> Iterator[bytes]:
            for before, after, record in made:
                note["before"] += before
                note["after"] += after
                yield record

        shard = tfds_files.write_shard(path, records())
        return note | {"records": shard.records, "bytes": shard.bytes}

    def line(self, notes: Sequence[shards.Note]) -> str:
        images, before, after = (sum(note[key] for note in notes) for key in ("records", "before", "after"))
        return f"{images:,} images, {before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB ({after / before:.0%})"

    def describe(self, directory: Path, made: shards.Made) -> None:
        for file, text in self.files.items():
            atomic.write(directory / file, text)
        files = {
            split: [tfds_files.Shard(note["records"], note["bytes"]) for note in notes]
            for split, notes in made.notes.items()
        }
        lost = len(made.left_out)
        about = self.about + (f"; {lost} that cannot be read are left out." if lost else ".")
        atomic.write(directory / parts.OPTIONS, json.dumps(made.options | {"left_out": made.left_out}, indent=2))
        tfds_files.write_description(directory, self.title, VERSION, files, made.classes, about, self.target)


def write(form: Records, splits: Mapping[str, Source], options: Mapping[str, Any], how: parts.How) -> Path:
    """Writes (or goes on writing) the data set, and returns its directory, see `lape_jax.data.offline.shards.write`."""
    tfds_files.check_classes(next(iter(splits.values())).classes)
    shards.write(form, splits, options, how)
    return form.whole


def _length(learned: int | bytes) -> int:
    return len(learned) if isinstance(learned, bytes) else 0
