"""Looks over a data set to detect objects in, for `python -m lape_jax.prepare check`."""

import os
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from lape_jax.data import listing
from lape_jax.data.example import Source
from lape_jax.data.offline import look
from lape_jax.data.offline.splits import DataSet, chosen
from lape_jax.errors import UserError
from lape_jax.tasks.detect import coco, layouts, sources, survey
from lape_jax.tasks.detect.photo import Photo


class Split(NamedTuple):
    """A split: what can be read of it, its file of annotations, and what cannot be used, in sentences."""

    source: Source[Photo]
    file: str
    wrong: list[str]


def recognises(data: DataSet) -> bool:
    """Whether it is laid out as `layouts.find` knows it, or was written by `prepare objects`."""
    if data.kind == "tfds" and data.name:
        from lape_jax.tasks.detect.records import has_objects  # imports TFDS

        return has_objects(data.name, data.path)
    return data.kind == "folder" and bool(layouts.find(data.path))


def report(
    data: DataSet, wanted: str = "", *, everything: bool, threads: int, say: Callable[[str], None] = print
) -> None:
    """Says what there is, split by split, and how to train on it.

    Args:
        data: that is recognised.
        wanted: the splits to look at, comma-separated; "" for all.
        everything: decodes all images, not just `look.SAMPLE` of each split, evenly spaced; annotations are all read.
        threads: how many images are decoded at a time.

    Raises:
        UserError: at the end, if a split, an image or an annotation cannot be used.
    """
    places = {} if data.kind == "tfds" else layouts.find(data.path)
    names = chosen(places or _split_names(data), wanted)
    good: list[str] = []  # files of annotations

    def check(split: str) -> int:
        found = _open_records(data, split) if data.kind == "tfds" else _open_files(places[split])
        bad = _check(found, split, everything, threads, say)
        if good:
            sources.check_classes(found.source.classes, found.file, good[0])
        good.append(found.file)
        return bad

    look.over(names, check, "of the images and annotations cannot be used", say)
    if len(names) > 1 and data.kind == "tfds":
        say(f"train on it: {layouts.command_of_records(data.path, data.name, names)}")
    elif len(names) > 1:
        say(f"train on it: {layouts.command(data.path, {split: places[split] for split in names})}")


def _split_names(data: DataSet) -> list[str]:
    from lape_jax.data.records import open_builder

    return layouts.in_order(open_builder(data.name, data.path).info.splits)


def _open_records(data: DataSet, split: str) -> Split:
    from lape_jax.tasks.detect.records import of_annotations, opened

    builder, file = opened(data.name, data.path, split)
    wrong: list[str] = []
    found = coco.read(file, masks=False, refuse=wrong.append)
    return Split(of_annotations(builder, split, found, found.entries, found.ids, found.left), file, wrong)


def _open_files(place: layouts.Place) -> Split:
    wrong: list[str] = []
    found = coco.read(place.file, masks=False, refuse=wrong.append)
    gone = set(sources.missing(place.images, [entry.file for entry in found.entries]))
    wrong += [f"{os.path.join(place.images, name)} is not there{_elsewhere(place, name)}" for name in sorted(gone)]
    there = [entry for entry in found.entries if entry.file not in gone]
    return Split(sources.PhotoFiles(place.images, there, found.ids, found.left), place.file, wrong)


def _elsewhere(place: layouts.Place, name: str) -> str:
    """Where an image of this name is, if it is not where it should be."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    root = os.path.dirname(place.file)
    for directory in (root, os.path.dirname(root)):
        beside = [directory, *(entry.path for entry in listing.entries(directory) if entry.is_dir())]
        for candidate in beside:
            if os.path.isfile(os.path.join(candidate, base)):
                return f", but {os.path.join(candidate, base)} is (config.detect.train_images, val_images)"
    return ""


def _check(found: Split, split: str, everything: bool, threads: int, say: Callable[[str], None]) -> int:
    """Says what one split holds, and returns how many images and annotations cannot be used."""
    source, count = found.source, len(found.source)
    objects = [source[index].objects for index in range(count)]
    crowds = sum(int(one.crowd.sum()) for one in objects)
    learned = sum(int(one.learned.sum()) for one in objects)
    more = f" and {crowds:,} crowds" if crowds else ""
    say(f"{split}: {count:,} images with {learned:,} objects{more} of {len(source.classes):,} classes")
    if objects:
        sizes = Counter((one.height, one.width) for one in objects)
        say(*look.sizes(sizes))
        say(f"  objects in an image: {look.span([int(one.learned.sum()) for one in objects])}; {_shares(source)}")
    indices = look.chosen(count, everything)
    looked = survey.look(source, indices, "view", threads)
    say(look.read(indices, everything, len(looked.bad), "unusable"))
    lines = looked.notes.lines() + survey.left(source) + survey.gaps(source) + survey.hints(source)
    for line in lines:
        say(f"  {line}")
    unusable = found.wrong + looked.bad
    for line in look.reasons("unusable", unusable):
        say(line)
    if not learned:
        raise UserError("there is no object to learn or to evaluate by")
    return len(unusable)


def _shares(source: Source[Photo]) -> str:
    counts: Counter[int] = Counter()
    for index in range(len(source)):
        one = source[index].objects
        counts.update(one.labels[one.learned].tolist())
    shown = [f"{source.classes[label]} {number:,}" for label, number in counts.most_common(8)]
    return ", ".join(shown + (["..."] if len(counts) > 8 else []))
