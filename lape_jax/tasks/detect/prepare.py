"""Data sets to detect objects in, from image files and JSON in COCO's format into a TFDS data set in array_record.

    OUT/NAME/1.0.0/NAME-SPLIT.array_record-...    features image, image_id, file_name    OUT/NAME/1.0.0/SPLIT.json

SPLIT.json holds the objects in COCO's format: the file as it was, unless images are made smaller. It is no part of the
records, so that whoever asks for boxes alone reads no images. JPEG and PNG images are kept byte by byte if they are not
made smaller and carry no EXIF orientation; those that do are written as they are looked at, and without it.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from lape_jax.data import resample, rescale
from lape_jax.data.offline import look, parts, resize, rewrite, shards, tfds_files
from lape_jax.data.offline.splits import check_name, chosen
from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps, coco, layouts, pipeline, sources, survey
from lape_jax.tasks.detect.photo import Photo


class Stored(NamedTuple):
    """An image as it is stored, and what it belongs to."""

    image: bytes
    photo: Photo

    @property
    def name(self) -> str:
        return self.photo.name


class _Files:
    """The photos of a split, to be read with their images."""

    classes = ()  # SPLIT.json has them

    def __init__(self, photos: sources.PhotoFiles):
        self.photos, self.root, self.files = photos, photos.root, photos.files

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Stored:
        photo = self.photos[index]
        return Stored(photo.image(), photo)


def copy(
    path: str,
    wanted: str,
    out: str,
    name: str,
    *,
    short: int,
    quality: int,
    orientation: str,
    how: parts.How,
) -> None:
    """Writes out/name/1.0.0 (see `rewrite`), in splits of the same names, and says how to train on it.

    Before anything is written all images are decoded, and those that cannot be used are named. A copy that was
    interrupted goes on without that.

    Args:
        path: a directory laid out as `lape_jax.tasks.detect.layouts.find` knows it.
        wanted: splits, "a,b"; "" for all.
        name: "" for "coco" if it is laid out like that, or that of the directory.
        short: images of a longer shorter side are reduced to it, with their objects; 0 keeps all sizes.
        quality: of reduced JPEG images.
        orientation: view | stored: which images are written, and the JSON files must mean.

    Raises:
        UserError: files are missing or cannot be used, another copy is there, `name` cannot be one, or the disk cannot
            be written.
    """
    if not os.path.isdir(path):
        raise UserError(f"--path={path} is not a directory" if path else "--path=DIR is missing")
    parts.check_outside(out, path)
    title = os.path.basename(os.path.abspath(path))
    places = layouts.find(path)
    if not places:
        raise UserError(f"{path} has no file of annotations in COCO's format: it must hold {layouts.LOOKED_FOR}")
    official = layouts.is_coco(path, places)
    name = name or ("coco" if official else tfds_files.make_name(title)) + (f"_{short}" if short else "")
    tfds_files.check_name(name)
    places = {split: places[split] for split in chosen(places, wanted)}
    splits = {split: _open(split, place) for split, place in places.items()}
    _check_classes(splits, places)
    reduces = f", reduced to a shorter side of at most {short} pixels (JPEG of quality {quality}, 4:2:0)"
    form = rewrite.Records(
        Path(out),
        name,
        f"{title}, images with objects in COCO's format" + (reduces if short else ""),
        lambda stored: convert(stored, short, quality, orientation),
        target=tfds_files.NUMBER,
        learned=lambda stored: stored.photo.number,
    )
    if not shards.begun(form):
        _verify(splits, orientation, how)
    texts = {split: _text(place.file) for split, place in places.items()}
    options: dict[str, Any] = {"origin": title, "short": short, "orientation": orientation}
    options["annotations"] = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    if short:
        options["quality"] = quality
        texts = {split: json.dumps(reduced(coco.load(place.file), short)) for split, place in places.items()}
    form = dataclasses.replace(form, files={f"{split}.json": text for split, text in texts.items()})
    rewrite.write(form, {split: _Files(photos) for split, photos in splits.items()}, options, how)
    if len(splits) > 1:
        how.say(f"train on it: {layouts.command_of_records(out, name, splits)}")


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8-sig")


def convert(stored: Stored, short: int, quality: int, orientation: str) -> Stored:
    """The image as it is written: resized bilinearly without antialiasing, as in training, to JPEG or PNG.

    Raises:
        CorruptImage, UserError: as `pipeline.examine`.
    """
    image, photo = stored
    found = pipeline.examine(photo, orientation, image)
    height, width = found.pixels.shape[:2]
    if not 0 < short < min(height, width):
        return Stored(resize.kept(image, found.pixels, found.orientation, orientation), photo)
    smaller = resample.to_pillow(rescale.resize(found.pixels, *_size(height, width, short)))
    return Stored(resize.encode(smaller, image, quality), photo)


def _size(height: int, width: int, short: int) -> tuple[int, int]:
    """What a shorter side above `short` is reduced to it in; int(side short / shorter side + 1/2)."""
    return rescale.fit(height, width, (height * width, short)) if short < min(height, width) else (height, width)


def reduced(content: dict, short: int) -> dict:
    """What a file of annotations, which can be read, becomes for the reduced images.

    Boxes and polygons go by the ratio of the sides, along each axis; RLE becomes that of the bitmap whose pixels take
    the nearest place.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    small = {number: _size(*size, short) for number, size in sizes.items()}
    images = [{**image, "height": small[image["id"]][0], "width": small[image["id"]][1]} for image in content["images"]]
    annotations = [
        _reduced(one, sizes[one["image_id"]], small[one["image_id"]]) if one["image_id"] in sizes else one
        for one in content["annotations"]
    ]
    return {**content, "images": images, "annotations": annotations}


def _reduced(one: dict, size: tuple[int, int], new: tuple[int, int]) -> dict:
    if size == new:
        return one
    (height, width), (new_height, new_width) = size, new
    ratios = new_width / width, new_height / height
    changed = {"bbox": [value * ratios[axis % 2] for axis, value in enumerate(one["bbox"])]}
    if one.get("area") is not None:
        changed["area"] = one["area"] * ratios[0] * ratios[1]
    mask = one.get("segmentation")
    if isinstance(mask, dict):
        counts = mask["counts"]
        stored = {**mask, "counts": counts.encode() if isinstance(counts, str) else counts}
        pixels = rescale.resize_labels(bitmaps.bitmap(stored, height, width), new_height, new_width)
        rle = bitmaps.encode(pixels)
        changed["segmentation"] = {"size": [new_height, new_width], "counts": rle["counts"].decode()}
    elif mask:
        changed["segmentation"] = [[value * ratios[axis % 2] for axis, value in enumerate(part)] for part in mask]
    return {**one, **changed}


def _open(split: str, place: layouts.Place) -> sources.PhotoFiles:
    check_name(split, place.file)
    found = coco.read(place.file, masks=False)
    sources.check_files(place.images, [entry.file for entry in found.entries], place.file)
    return sources.PhotoFiles(place.images, found.entries, found.ids, found.left)


def _check_classes(splits: dict[str, sources.PhotoFiles], places: dict[str, layouts.Place]) -> None:
    first, *others = splits
    for split in others:
        try:
            sources.check_classes(splits[split].classes, places[split].file, places[first].file)
        except UserError as error:
            raise UserError(f"{error}; --splits={first} leaves {split} out") from error


def _verify(splits: dict[str, sources.PhotoFiles], orientation: str, how: parts.How) -> None:
    """Decodes all images, says which cannot be used, and what else is to be known; UserError if there are such."""
    found = look.usable(
        splits,
        lambda source, watch: survey.look(source, range(len(source)), orientation, how.threads, watch),
        "images",
        how.say,
    )
    for split, source in splits.items():
        for line in found[split].notes.lines() + survey.hints(source):
            how.say(f"{split}: {line}")
