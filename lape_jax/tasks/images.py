"""Images of a user's own, as `predict` is given them: which, what to call their results, and how they are read."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lape_jax.data import ahead, decode, listing, survey
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.pictures import SUFFIXES
from lape_jax.errors import UserError

logger = logging.getLogger(__name__)

TOP = 5  # classes of an image that are named
Found = dict[Path, Path]  # images -> what to call them below the output directory


def find(given: Sequence[str], out: Path) -> Found:
    """The images that are meant, and what to call them: as they are, without suffix if no two would be the same.

    Raises:
        UserError: a path that is not there, or a directory without images.
    """
    found: Found = {}
    for path in map(Path, given):
        if path.is_dir():
            inside = [path / name for name in listing.list_files(str(path), SUFFIXES)[0]]
            inside = [image for image in inside if out.resolve() not in image.resolve().parents]
            if not inside:
                raise UserError(f"{path} has no images ({', '.join(SUFFIXES)}), other than those in --out={out}")
            found |= {image: image.relative_to(path).with_suffix("") for image in inside}
        elif path.exists():
            found[path] = Path(path.stem)
        else:
            raise UserError(f"there is no image or directory {str(path)!r}")
    often = Counter(found.values())
    return {image: name.with_name(image.name) if often[name] > 1 else name for image, name in found.items()}


def readable(images: Sequence[Path], read: Callable[[Path], np.ndarray], threads: int) -> Iterator[tuple[Path, Any]]:
    """Image and what `read` makes of it, in order, made by so many threads; those that raise CorruptImage are named."""

    def attempt(image: Path) -> np.ndarray | CorruptImage:
        try:
            return read(image)
        except CorruptImage as error:
            return error

    for image, found in zip(images, ahead.each(attempt, images, threads), strict=True):
        if isinstance(found, CorruptImage):
            logger.warning("%s", found)
        else:
            yield image, found


def pixels(image: Path, channels: int, orientation: str) -> np.ndarray:
    """uint8 (h, w, channels), as for `decode.decode`; says so if it is nearly black for want of bits.

    Raises:
        CorruptImage: it cannot be read.
    """
    found = decode.examine(listing.read(str(image)), channels, str(image), orientation)
    if found.dim:
        logger.warning("%s: %s", image, survey.DIM)
    return found.pixels


def check_places(images: Found, places: Callable[[Path], Sequence[Path]], others: Mapping[Path, str]) -> None:
    """Raises UserError if two results would be called the same, or take the place of a file that may be the user's.

    That is every image, and whatever lies beside one; elsewhere earlier predictions are replaced.

    Args:
        images: files -> what to call them.
        places: for each name of an image, the files that have it.
        others: files that are of no image -> what they are.
    """
    makers: dict[Path, Path] = {}
    for image, name in images.items():
        for place in places(name):
            if place in makers or place in others:
                other = makers.get(place) or others[place]
                raise UserError(f"{place} would be of {other} and of {image}: predict them into two directories")
            makers[place] = image
    beside = {image.resolve().parent for image in images}
    for place in (*makers, *others):
        if place.exists() and place.resolve().parent in beside:
            raise UserError(f"{place} is there already, beside an image: use another --out")


def middles(read: Iterable[np.ndarray], size: int, count: int) -> Iterator[np.ndarray]:
    """The middle of each image, whose shorter side is resized to `size`; so many at a time."""
    batch: list[np.ndarray] = []
    for whole in read:
        batch.append(decode.eval_crop(whole, size, 1.0))
        if len(batch) == count:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def check_alike(runs: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raises UserError unless runs (`lape_jax.tasks.task.Candidate`, by title) know the same classes, and these keys of
    `config.data`, that say which images are shown and how, are equal."""
    first, *others = runs.values()
    for other in others:
        if tuple(other.classes) != tuple(first.classes):
            raise UserError("these runs know other classes, or number them otherwise (--images=0 does without)")
        for key in keys:
            here, there = (run.config.data[key] for run in (first, other))
            if here != there:
                raise UserError(
                    f"these runs are of other images: data.{key} is {here!r} and {there!r} (--images=0 does without)"
                )


def named(parts: Iterable[tuple[str, float]]) -> str:
    """Names and their parts of a whole, for a line.

    >>> named([("cat", 0.9), ("dog", 0.1)])
    'cat 90.0%, dog 10.0%'
    """
    return ", ".join(f"{name} {100 * part:.1f}%" for name, part in parts)
