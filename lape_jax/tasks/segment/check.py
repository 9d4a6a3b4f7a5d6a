"""Looks over a set of scenes on disk, for `python -m lape_jax.prepare check`."""

import os
import shlex
from collections.abc import Callable

from lape_jax.data.example import Source
from lape_jax.data.offline import look
from lape_jax.data.offline.splits import DataSet, chosen
from lape_jax.errors import UserError
from lape_jax.tasks.segment import sources, survey
from lape_jax.tasks.segment.limits import Limits
from lape_jax.tasks.segment.scene import Scene

CONFIG = "configs/segmenter_ti_mask_ade20k.py"


def recognises(data: DataSet) -> bool:
    """Whether it is laid out as scenes are: images/ beside their maps or the list of classes, or records with maps."""
    if data.kind == "tfds" and data.name:
        from lape_jax.tasks.segment.records import has_maps  # imports TFDS

        return has_maps(data.name, data.path)
    return data.kind == "folder" and bool(sources.layout(data.path)) and not _is_split(data)


def _is_split(data: DataSet) -> bool:
    """Whether there is a directory of classes, to train on; `images` may be a class or a split, too."""
    return os.path.isdir(os.path.join(data.path, data.train))


def report(
    data: DataSet, wanted: str = "", *, everything: bool, threads: int, say: Callable[[str], None] = print
) -> None:
    """Says what there is, split by split, and how to train on it.

    Args:
        data: that is recognised.
        wanted: the splits to look at, comma-separated; "" for all.
        everything: reads all scenes, not just `look.SAMPLE` of each split, evenly spaced.
        threads: how many scenes are decoded at a time.

    Raises:
        UserError: at the end, if a split or a scene cannot be used.
    """
    kind = "tfds" if data.kind == "tfds" else sources.layout(data.path)
    names = _split_names(data, kind, wanted)
    look.over(
        names,
        lambda split: _check(_open(data, kind, split), split, everything, threads, say),
        "of the scenes cannot be used",
        say,
    )
    if len(names) > 1:
        say(f"train on it: {command(kind, data.path, data.name, names)}")


def _split_names(data: DataSet, kind: str, wanted: str) -> list[str]:
    if kind == "tfds":
        from lape_jax.data.records import open_builder

        found = sources.in_order(open_builder(data.name, data.path).info.splits)
    else:
        found = sources.split_names(data.path)
    return chosen(found, wanted)


def _open(data: DataSet, kind: str, split: str) -> Source[Scene]:
    if kind != "tfds":
        return sources.LAYOUTS[kind].open(data.path, split)
    from lape_jax.tasks.segment.records import tfds_scenes

    return tfds_scenes(data.name, data.path, split)


def _check(source: Source[Scene], split: str, everything: bool, threads: int, say: Callable[[str], None]) -> int:
    """Says what one split holds, and returns how many of the scenes that were read cannot be used."""
    count = len(source)
    indices = look.chosen(count, everything)
    found = survey.look(source, indices, "view", Limits(), threads)
    say(f"{split}: {count:,} scenes of {len(source.classes):,} classes")
    for line in look.sizes(found.sizes):
        say(line)
    if found.pixels:
        say(f"  pixels: {_shares(found)}")
    say(look.read(indices, everything, len(found.bad), "unusable"))
    for line in found.notes.lines() + found.gaps():
        say(f"  {line}")
    for line in look.reasons("unusable", found.bad) + look.reasons("too narrow to be evaluated", found.narrow):
        say(line)
    if found.notes.read and not found.labelled and split.startswith("train"):
        raise UserError("there is nothing to learn from maps without a class")
    return len(found.bad) + len(found.narrow)


def _shares(found: survey.Scenes) -> str:
    total = sum(found.pixels.values())
    parts = sorted(((found.of(number), name) for number, name in enumerate(found.classes)), key=lambda one: -one[0])
    shown = [f"{name} {100 * pixels / total:.1f}%" for pixels, name in parts[:8] if pixels]
    shown += ["..."] if sum(pixels > 0 for pixels, _ in parts) > 8 else []
    none = total - found.labelled
    return ", ".join(shown + ([f"no class {100 * none / total:.1f}%"] if none else []))


def command(kind: str, path: str, name: str, splits: list[str]) -> str:
    """How to train on splits, of which the first is to be learned, of a set that is opened by `data.source=kind`."""
    val = next((split for split in ("validation", "val", "test") if split in splits), splits[-1])
    place = path.replace(",", r"\,")  # as `lape_jax.config.reading.parse_arg` reads it
    source = "" if kind == "ade20k" else f",source={kind}"
    line = f"python -m lape_jax.main --config={shlex.quote(f'{CONFIG}:path={place}{source}')} --workdir=DIR"
    usual = ("train", "val") if kind == "folder" else ("training", "validation")
    for key, value, default in (
        ("name", name, "ade20k" if kind == "tfds" else ""),
        ("train_split", splits[0], usual[0]),
        ("val_split", val, usual[1]),
    ):
        line += f" --config.data.{key}={value}" if value != default else ""
    return line
