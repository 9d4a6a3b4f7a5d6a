"""What a data set holds that its owner may not know, said when a run starts."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from lape_jax.data import survey
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.data.listing import some
from lape_jax.errors import UserError
from lape_jax.tasks.detect import pipeline
from lape_jax.tasks.detect.photo import Photo


def start(config: ConfigDict, train: Source[Photo], val: Source[Photo]) -> list[str]:
    """What is to be said of both sets: all of their annotations, and some of their images."""
    lines = [*_counted(train, "train"), *_left(train, "train"), *_left(val, "val")]
    lines += _gaps(train) + _crowded(train, config.detect.max_objects)
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


def _counted(source: Source[Photo], split: str) -> list[str]:
    learned, crowds = (
        sum(int(getattr(photo.objects, name).sum()) for photo in _all(source)) for name in ("learned", "crowd")
    )
    more = f", and {crowds:,} crowds, which are not learned" if crowds else ""
    return [f"{split}: {len(source):,} images with {learned:,} objects of {len(source.classes):,} classes{more}"]


def _left(source: Source[Photo], split: str) -> list[str]:
    return [
        f"{split}: {one.count:,} {one.what} {one.why}, and are left out (the first is {one.first})"
        for one in getattr(source, "left", ())
    ]


def _gaps(source: Source[Photo]) -> list[str]:
    """Which classes have no object to learn."""
    found: Counter[int] = Counter()
    for photo in _all(source):
        found.update(photo.objects.labels[photo.objects.learned].tolist())
    gone = [name for label, name in enumerate(source.classes) if not found[label]]
    return [f"train: there is not one object of {some(gone)}"] if gone else []


def _crowded(source: Source[Photo], most: int) -> list[str]:
    """How many images have more objects than there are places."""
    counts = np.array([photo.objects.learned.sum() for photo in _all(source)])
    if not (counts > most).any():
        return []
    return [
        f"train: {np.count_nonzero(counts > most):,} images have more objects than config.detect.max_objects = {most} "
        f"(up to {counts.max():,}): each time, {most} of them are drawn and learned"
    ]
