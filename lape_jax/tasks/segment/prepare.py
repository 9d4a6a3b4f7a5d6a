"""Data sets for segmentation, from image files and maps into a TFDS data set in array_record.

A record has `image` (JPEG or PNG), `segmentation_mask` and `file_name`. In the maps classes count from 0, 255 stands
for no class, and TFDS's description (LabeledImage) has the names: so ADE20K's wall, 1 in its files, is 0 here, and 0,
"other objects", is 255. All maps are grey PNGs of 8 bits, which every program reads alike; what is one already, and
counts like that, is kept byte by byte, as are all JPEG and PNG images that are not made smaller and carry no EXIF
orientation. Those that do are written as they are looked at, and without it, so that all readers see the same.
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from lape_jax.data import resample, rescale
from lape_jax.data.offline import look, parts, resize, rewrite, shards, tfds_files
from lape_jax.data.offline.splits import check_name, chosen
from lape_jax.errors import UserError, nearest
from lape_jax.tasks.segment import masks, survey
from lape_jax.tasks.segment.check import command
from lape_jax.tasks.segment.scene import NO_CLASS, Scene
from lape_jax.tasks.segment.sources import LAYOUTS, SceneFiles, split_names


def copy(
    path: str,
    layout: str,
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

    Before anything is written all pairs are decoded, and those that cannot be used are named. A copy that was
    interrupted goes on without that, but still looks at what it writes.

    Args:
      layout: of LAYOUTS, how `path` is laid out: see `lape_jax.tasks.segment.sources`.
      wanted: splits, "a,b"; "" for all.
      name: "" for "ade20k", or that of the directory.
      short, quality, orientation: see `convert`; short = 0 keeps all sizes.

    Raises:
      UserError: files are missing or cannot be used, another copy is there, `name` cannot be one, or the disk cannot be
        written.
    """
    if not os.path.isdir(path):
        raise UserError(f"--path={path} is not a directory" if path else "--path=DIR is missing")
    parts.check_outside(out, path)
    title = os.path.basename(os.path.abspath(path))
    name = name or tfds_files.make_name("ade20k" if layout == "ade20k" else title) + (f"_{short}" if short else "")
    tfds_files.check_name(name)
    splits = _open(path, layout, wanted)
    about = f"{title}, images and maps of classes, of which 255 is none"
    options = {"origin": title, "layout": layout, "short": short, "orientation": orientation}
    if short:
        options["quality"] = quality
        about += f", reduced to a shorter side of at most {short} pixels (JPEG of quality {quality}, 4:2:0)"
    classes = len(next(iter(splits.values())).classes)
    form = rewrite.Records(
        Path(out),
        name,
        about,
        lambda scene: convert(scene, classes, short, quality, orientation),
        target=tfds_files.MAP,
        learned=lambda scene: scene.mask,
    )
    if not shards.begun(form):
        _verify(splits, orientation, how)
    rewrite.write(form, splits, options, how)
    if len(splits) > 1:
        how.say(f"train on it: {command('tfds', out, name, list(splits))}")


def convert(scene: Scene, classes: int, short: int, quality: int, orientation: str = "view") -> Scene:
    """The scene as it is written: a map as above, and both smaller if the shorter side is above `short` > 0.

    Sides become int(side short / shorter side + 1/2). The image is resized bilinearly without antialiasing, the map by
    the nearest place, as in training. The image becomes JPEG of `quality` or PNG as in `resize.encode`.

    Args:
      orientation: view | stored, as for `masks.decode_scene`: which image is written, with the map that belongs to it.

    Raises:
      CorruptImage, UserError: as `masks.decode_scene` does.
    """
    found, indices = masks.examine_scene(scene, 3, orientation)
    labels = masks.to_labels(indices, scene, classes)
    height, width = labels.shape
    if 0 < short < min(height, width):
        height, width = rescale.fit(height, width, (height * width, short))
        smaller = resample.to_pillow(rescale.resize(found.pixels, height, width))
        labels = rescale.resize_labels(labels, height, width)
        return Scene(resize.encode(smaller, scene.image, quality), _encode(labels), scene.name)
    image = resize.kept(scene.image, found.pixels, found.orientation, orientation)
    # Bytes 24 and 25 of every PNG are its depth and kind, in its first chunk: 8 bits, grey.
    plain = scene.first == 0 and scene.mask[24:26] == b"\x08\x00" and found.orientation == 1
    return Scene(image, scene.mask if plain else _encode(labels), scene.name)


def _encode(labels: Int32[np.ndarray, "h w"]) -> bytes:
    indices = np.where(labels < 0, NO_CLASS, labels).astype(np.uint8)
    return resize.encode(Image.fromarray(indices), resize.PNG, 0)


def _open(path: str, layout: str, wanted: str) -> dict[str, SceneFiles]:
    """The splits, the one for training first."""
    if layout not in LAYOUTS:
        raise UserError(f"--layout: {nearest(layout, list(LAYOUTS))}")
    maps = LAYOUTS[layout].maps
    for other, (_, directory, _) in LAYOUTS.items():
        if not os.path.isdir(os.path.join(path, maps)) and os.path.isdir(os.path.join(path, directory)):
            raise UserError(f"{path} has no directory {maps!r}, but {directory!r}: its layout is --layout={other}")
    names = chosen(split_names(path), wanted)
    splits = {}
    for split in names:
        check_name(split, f"{path}/images/{split}")
        try:
            splits[split] = LAYOUTS[layout].open(path, split)
        except UserError as error:
            others = ",".join(other for other in names if other != split)
            hint = f"; --splits={others} leaves {split} out" if splits else ""  # else it may be no matter of splits
            raise UserError(f"{error}{hint}") from error
    return splits


def _verify(splits: dict[str, SceneFiles], orientation: str, how: parts.How) -> None:
    """Decodes all pairs, says which cannot be used, and raises UserError if there are such.

    Also if not a pixel of the first split has a class; of other splits, and of single classes, it says so.
    """
    found = look.usable(
        splits,
        lambda source, watch: survey.look(source, range(len(source)), orientation, None, how.threads, watch),
        "pairs",
        how.say,
    )
    for split, one in found.items():
        for line in one.notes.lines() + one.gaps():
            how.say(f"{split}: {line}")
    first = next(iter(found))
    if not found[first].labelled:
        raise UserError(f"{first}: {found[first].gaps()[0]}; nothing was written")
