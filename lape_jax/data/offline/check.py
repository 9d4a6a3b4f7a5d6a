"""Looks over a data set on disk: splits, classes, sizes, and images that cannot be read."""

import contextlib
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from lape_jax.data import ahead, canvas, decode, packed, survey
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.data.offline import look
from lape_jax.data.offline.splits import DataSet
from lape_jax.errors import UserError

CHUNK = 64  # images per task
Item = TypeVar("Item")


class Found(NamedTuple):
    """What reading images brought to light: counts by label and by (height, width), reasons by name, notes on files."""

    labels: Counter[int]
    sizes: Counter[tuple[int, int]]
    corrupt: dict[str, str]
    notes: survey.Notes


def report(
    data: DataSet, wanted: str = "", *, everything: bool, threads: int, say: Callable[[str], None] = print
) -> None:
    """Says what there is, split by split, and how to train on it.

    Args:
      data: of kind "tfds" without a name: all data sets that are there are listed.
      wanted: the splits to look at, comma-separated; "" for all.
      everything: reads and decodes all images, not just `look.SAMPLE` of each split, evenly spaced.
      threads: how many images are decoded at a time.

    Raises:
      UserError: at the end, if a split cannot be used or an image cannot be read; at once, if there is no data set.
    """
    if data.kind == "tfds" and not data.name:
        return _list_sets(data.path, say)
    names = data.split_names(wanted)

    def hint(unusable: Sequence[str]) -> str:
        others = ",".join(name for name in names if name not in unusable)
        return f"; --splits={others} leaves that out" if data.train in others.split(",") else ""

    bad = "of the images cannot be read"
    look.over(names, lambda split: _check_split(data.open(split), split, everything, threads, say), bad, say, hint)
    if len(names) > 1:
        say(f"train on it: {_command(data, names)}")


def _list_sets(path: str, say: Callable[[str], None]) -> None:
    from lape_jax.data import records  # imports TFDS

    path = records.default_dir(path)
    for name, versions in (found := records.prepared(path)).items():
        for version in versions:
            try:
                info = records.find(f"{name}:{version}", path).info
            except UserError as error:
                say(f"{name}:{version}: {error}")
                continue
            formats = sorted(form.value for form in info.available_file_formats())
            parts = ", ".join(f"{split} {part.num_examples:,}" for split, part in info.splits.items())
            ready = "" if records.ARRAY_RECORD in formats else "; not readable yet: prepare tfds converts it"
            say(f"{name}:{version}: {parts}; {', '.join(formats)}{ready}")
    if not found:
        raise UserError(f"{path} holds no TFDS data set")
    say("look over one of them with --name=NAME")


def _command(data: DataSet, names: list[str]) -> str:
    val = next((name for name in ("val", "validation", "test") if name in names), names[-1])
    path = data.path.replace(",", r"\,")  # as `lape_jax.config.reading.parse_arg` reads it
    parts = [f"tfds={data.name}"] if data.kind == "tfds" else []
    args = ",".join([*parts, *([f"path={path}"] if path else [])])
    config = shlex.quote(f"configs/images.py:{args},val={val}")
    command = f"python -m lape_jax.main --config={config} --workdir=DIR"
    command += f" --config.data.source={data.kind}" if data.kind in ("arrays", "packed") else ""
    if data.kind == "packed" and (side := packed.describe(data.path)["side"]) != canvas.SIDE:
        command += f" --config.data.side={side}"
    command += f" --config.data.train_split={data.train}" if data.train != "train" else ""
    return command


def _check_split(source: Source, split: str, everything: bool, threads: int, say: Callable[[str], None]) -> int:
    """Says what one split holds, and returns how many of the images that were read are unreadable."""
    count = len(source)
    chosen = look.chosen(count, everything)
    found = _read(source, chosen, threads)
    labels = Counter(np.asarray(source.labels).tolist()) if hasattr(source, "labels") else found.labels
    say(f"{split}: {count:,} examples of {len(source.classes):,} classes, {_disk_size(source, threads) / 1e6:,.1f} MB")
    if hasattr(source, "labels") or everything:
        per_class = [labels[label] for label in range(len(source.classes))]
        say(f"  examples per class: {look.span(per_class)}")
        if empty := [source.classes[label] for label, n in enumerate(per_class) if not n]:
            say(f"  classes without examples: {_some(empty)}")
    for line in look.sizes(found.sizes):
        say(line)
    say(look.read(chosen, everything, len(found.corrupt), "unreadable"))
    for line in found.notes.lines():
        say(f"  {line}")
    for name, reason in found.corrupt.items():
        say(f"  unreadable: {name}: {reason}")
    return len(found.corrupt)


def _read(source: Source, indices: list[int], threads: int) -> Found:
    """Decodes these examples. Raises UserError where one has no label."""

    def examine(part: Sequence[int]) -> Found:
        found = Found(Counter(), Counter(), {}, survey.Notes())
        for index in part:
            try:
                example = source[index]
                pixels, *said = decode.examine(example.image, 3, example.name)
            except CorruptImage as error:
                found.corrupt[error.name] = error.reason
            else:
                found.labels[example.label] += 1
                found.sizes[pixels.shape[:2]] += 1
                found.notes.add(*said, example.name)
        return found

    whole = Found(Counter(), Counter(), {}, survey.Notes())
    for part in ahead.each(examine, _parts(indices), threads):
        whole.labels.update(part.labels)
        whole.sizes.update(part.sizes)
        whole.corrupt.update(part.corrupt)
        whole.notes.update(part.notes)
    return whole


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def _disk_size(source: Source, threads: int) -> int:
    """Bytes of the files that a split lies in, or of its pixels if it is in memory. Files that are gone count 0."""
    if hasattr(source, "images"):
        return source.images.nbytes

    def size(files: Sequence[str]) -> int:
        total = 0
        for file in files:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(source.root, file))
        return total

    return sum(ahead.each(size, _parts(source.files), 4 * threads))  # which wait for a network file system, mostly


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
