"""What a data set holds that its owner may not know, said when a run starts, or by `prepare`."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from lape_jax.data import ahead, survey
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.data.listing import some
from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps, pipeline
from lape_jax.tasks.detect.photo import Objects, Photo


@dataclasses.dataclass
class Looked:
    """What images have shown: notes on their files, and why some cannot be used, in sentences."""

    notes: survey.Notes = dataclasses.field(default_factory=survey.Notes)
    bad: list[str] = dataclasses.field(default_factory=list)


def look(
    source: Source[Photo],
    indices: Sequence[int],
    orientation: str,
    threads: int,
    watch: Callable[[str], None] = lambda reason: None,
) -> Looked:
    """Decodes these images.

    Args:
        orientation: view | stored.
        threads: how many are decoded at a time.
        watch: is told of each why it cannot be used, or "".
    """

    def seen(index: int) -> tuple | str:
        photo = source[index]
        try:
            found = pipeline.examine(photo, orientation)
        except (CorruptImage, UserError) as error:
            return str(error)
        return found.orientation, found.dim, photo.name

    whole = Looked()
    for found in ahead.each(seen, indices, threads):
        if isinstance(found, str):
            whole.bad.append(found)
        else:
            whole.notes.add(*found)
        watch(found if isinstance(found, str) else "")
    return whole


def hints(source: Source[Photo]) -> list[str]:
    """What seems to be meant otherwise in the boxes and masks of a set, and the likely cause."""
    photos = [photo for photo in _all(source) if len(photo.objects)]
    if not photos:
        return []
    boxes = np.concatenate([photo.objects.boxes for photo in photos])
    sizes = np.concatenate([[(one.width, one.height)] * len(one) for one in (photo.objects for photo in photos)])
    if boxes.max() <= 1:
        return ["all boxes lie between 0 and 1: they seem to be parts of the image, and must be pixels"]
    beyond = (boxes[:, :2] + boxes[:, 2:] > sizes + 1).any(axis=1)
    if beyond.mean() > 0.3 and (boxes[:, 2:] > boxes[:, :2]).all():
        return [
            f"{beyond.sum():,} of {len(boxes):,} boxes reach out of their images: they seem to be x1, y1, x2, y2, and "
            f"must be x, y, width, height"
        ]
    apart = [photo.name for photo in photos for _ in range(_apart(photo.objects))]
    lines = []
    if apart:
        lines.append(
            f"{len(apart):,} objects have a mask that lies outside of their box, where it is not learned (the first is "
            f"of {apart[0]})"
        )
    none = sum(one is None for photo in photos for one in photo.objects.masks)
    if none:
        lines.append(f"{none:,} of {len(boxes):,} objects have no mask: --config.detect.masks=False learns boxes alone")
    return lines


def _apart(objects: Objects) -> int:
    """How many masks of objects that are learned have nothing in common with their boxes."""
    count = 0
    for row in np.flatnonzero(objects.learned):
        if objects.masks[row] is not None:
            x, y, w, h = objects.boxes[row]
            left, top, wide, high = bitmaps.box(objects.masks[row], objects.height, objects.width)
            count += bool(min(x + w, left + wide) <= max(x, left) or min(y + h, top + high) <= max(y, top))
    return count


def start(config: ConfigDict, train: Source[Photo], val: Source[Photo]) -> list[str]:
    """What is to be said of both sets: all of their annotations, and some of their images."""
    lines = _counted(train)
    lines += left(train) + gaps(train) + _crowded(train, config.detect.max_objects)
    lines = [f"train: {line}" for line in lines] + [f"val: {line}" for line in left(val)]
    if not config.detect.masks:
        lines.append("masks are neither learned nor evaluated (config.detect.masks=False)")
    notes, wrong = survey.Notes(), []
    for index in survey.spread(len(train), survey.START):
        try:
            photo = train[index]
            found = pipeline.examine(photo, config.data.orientation)
            notes.add(found.orientation, found.dim, photo.name)
        except CorruptImage:
            continue  # skipped, and named, in training
        except UserError as error:
            wrong.append(f"training will stop: {error}")
    for index in survey.spread(len(val), survey.START):
        try:
            pipeline.examine(val[index], config.data.orientation)
        except (CorruptImage, UserError) as error:
            wrong.append(f"evaluation will stop: {error}")
    return lines + notes.lines(config.data.orientation) + wrong[:8]


def _all(source: Source[Photo]) -> Iterator[Photo]:
    return (source[index] for index in range(len(source)))


def _counted(source: Source[Photo]) -> list[str]:
    learned, crowds = (
        sum(int(getattr(photo.objects, name).sum()) for photo in _all(source)) for name in ("learned", "crowd")
    )
    more = f", and {crowds:,} crowds, which are not learned" if crowds else ""
    return [f"{len(source):,} images with {learned:,} objects of {len(source.classes):,} classes{more}"]


def left(source: Source[Photo]) -> list[str]:
    """What the files have that is left out, and why."""
    return [
        f"{one.count:,} {one.what} {one.why}, and are left out (the first is {one.first})"
        for one in getattr(source, "left", ())
    ]


def gaps(source: Source[Photo]) -> list[str]:
    """Which classes have no object to learn, in a line, if there are such."""
    found: Counter[int] = Counter()
    for photo in _all(source):
        found.update(photo.objects.labels[photo.objects.learned].tolist())
    gone = [name for label, name in enumerate(source.classes) if not found[label]]
    return [f"there is not one object of {some(gone)}"] if gone else []


def _crowded(source: Source[Photo], most: int) -> list[str]:
    """How many images have more objects than there are places."""
    counts = np.array([photo.objects.learned.sum() for photo in _all(source)])
    if not (counts > most).any():
        return []
    return [
        f"{np.count_nonzero(counts > most):,} images have more objects than config.detect.max_objects = {most} "
        f"(up to {counts.max():,}): each time, {most} of them are drawn and learned"
    ]
