"""What a set of scenes holds, as far as it was read: which values its maps have, and what does not fit."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from lape_jax.data import ahead, survey
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.errors import UserError
from lape_jax.tasks.segment import masks, values
from lape_jax.tasks.segment.limits import Limits
from lape_jax.tasks.segment.scene import Scene

FEW = survey.START // 2  # classes that should all occur in a sample


@dataclasses.dataclass
class Scenes:
    """What was found.

    Attributes:
        classes, first: as in the source and its scenes.
        total: scenes that there are.
        pixels: value in the maps -> how many pixels have it.
        sizes: (height, width) -> how many images have it, as they are looked at.
        notes: on the image files.
        bad: what cannot be used, and why, in sentences.
        narrow: what cannot be evaluated, and why.
    """

    classes: Sequence[str]
    first: int
    total: int
    pixels: Counter[int] = dataclasses.field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    notes: survey.Notes = dataclasses.field(default_factory=survey.Notes)
    bad: list[str] = dataclasses.field(default_factory=list)
    narrow: list[str] = dataclasses.field(default_factory=list)

    @property
    def read(self) -> int:
        return self.notes.read + len(self.bad)

    @property
    def labelled(self) -> int:
        """Pixels that have a class."""
        return sum(self.of(number) for number in range(len(self.classes)))

    def of(self, number: int) -> int:
        """Pixels of a class."""
        return self.pixels[number + self.first]

    def gaps(self) -> list[str]:
        """Which classes have not a pixel, and why that may be so, in a line, or none.

        Of a set that was read in part, and has so many classes that some may well be missing from a part of it, only
        what has a likely cause.
        """
        gone = values.missing(self.pixels, self.first, len(self.classes))
        hint = values.hint(self.pixels, self.first, len(self.classes))
        part = self.notes.read < self.total
        if not gone or not self.notes.read or (part and not hint and len(self.classes) > FEW):
            return []
        where = f"the {self.notes.read:,} maps read" + (f" of {self.total:,}" if part else "")
        if not self.labelled:
            return [f"not a pixel of {where} has a class{hint}"]
        names = ", ".join(map(repr, (self.classes[number] for number in gone[:8])))
        more = f", ... ({len(gone)} in all)" if len(gone) > 8 else ""
        return [f"not a pixel of {where} is of class {names}{more}{hint}"]


def look(
    source: Source[Scene],
    indices: Sequence[int],
    orientation: str,
    limits: Limits | None,
    threads: int,
    watch: Callable[[str], None] = lambda reason: None,
) -> Scenes:
    """Reads these scenes.

    Args:
        orientation: view | stored.
        limits: that their sizes must keep, if any.
        threads: how many are decoded at a time.
        watch: is told of each why it cannot be used, or "".
    """
    classes = source.classes

    def seen(index: int) -> tuple | str:
        try:
            scene = source[index]
            image, indices = masks.examine_scene(scene, 3, orientation)
            masks.to_labels(indices, scene, len(classes))
        except (CorruptImage, UserError) as error:
            return str(error)
        narrow = ""
        try:
            if limits:
                limits.check(*indices.shape)
        except UserError as error:
            narrow = f"{scene.name}: {error}"
        counts = dict(zip(*(array.tolist() for array in np.unique(indices, return_counts=True)), strict=True))
        return scene.first, counts, indices.shape, image.orientation, image.dim, scene.name, narrow

    found = Scenes(classes, 0, len(source))
    for one in ahead.each(seen, indices, threads):
        watch(one if isinstance(one, str) else "")
        if isinstance(one, str):
            found.bad.append(one)
            continue
        found.first, counts, shape, turned, dim, name, narrow = one
        found.pixels.update(counts)
        found.sizes[shape] += 1
        found.notes.add(turned, dim, name)
        found.narrow += [narrow] if narrow else []
    return found


def start(train: Source[Scene], val: Source[Scene], orientation: str, limits: Limits, threads: int) -> list[str]:
    """What is to be said when a run starts, after a look at some examples of both sets."""
    found = look(train, survey.spread(len(train), survey.START), orientation, None, threads)
    lines = found.notes.lines(orientation) + found.gaps()
    there = look(val, survey.spread(len(val), survey.START), orientation, limits, threads)
    return lines + [f"evaluation will stop: {reason}" for reason in (there.bad + there.narrow)[:8]]
