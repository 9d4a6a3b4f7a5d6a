"""All splits of a data set on disk, found by looking."""

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from lape_jax.data import listing, packed, sources
from lape_jax.data.example import Source
from lape_jax.errors import UserError, nearest

KINDS = ("folder", "arrays", "tfds", "packed")


class DataSet(NamedTuple):
    """Where a data set is: kind "folder", "arrays", "tfds" or "packed", and else as in the config.

    `train` is the split that defines the classes of a folder or of arrays.
    """

    kind: str
    path: str
    name: str = ""
    train: str = "train"

    def split_names(self, wanted: str = "") -> list[str]:
        """All splits, `train` first, or those of the comma-separated list `wanted`.

        Raises:
          UserError: the data set, `train` or a wanted split is not there.
        """
        match self.kind:
            case "folder":
                found = [entry.name for entry in self._entries() if entry.is_dir()]
            case "arrays":
                found = [entry.name.removesuffix(".npz") for entry in self._entries() if entry.name.endswith(".npz")]
            case "tfds":
                from lape_jax.data.records import open_builder  # imports TFDS

                found = list(open_builder(self.name, self.path).info.splits)
            case "packed":
                found = list(packed.describe(self.path)["splits"])
            case unknown:
                raise UserError(f"--source: {nearest(unknown, KINDS)}")
        if self.kind in ("folder", "arrays") and self.train not in found:
            there = ", ".join(sorted(found)) or "none"
            if self.kind == "folder" and any(entry.name.endswith(".npz") for entry in self._entries()):
                there += " (for its .npz files: --source=arrays)"
            raise UserError(
                f"{self.path} has no split {self.train!r} (--train), which defines the classes; found: {there}"
            )
        return chosen(sorted(found, key=lambda split: (split != self.train, split)), wanted)

    def open(self, split: str) -> Source:
        """One of them. Raises UserError as `sources.open_split` does."""
        match self.kind:
            case "folder":
                return sources.folder(self.path, split, self.train)
            case "arrays":
                return sources.arrays(self.path, split, self.train)
            case "packed":
                return packed.open_packed(self.path, split)
            case _:
                from lape_jax.data.records import tfds_records

                return tfds_records(self.name, self.path, split)

    def title(self) -> str:
        """A name for it: the directory's, or TFDS's, with the version."""
        if self.kind != "tfds":
            return os.path.basename(os.path.abspath(self.path))
        from lape_jax.data.records import open_builder

        return open_builder(self.name, self.path).info.full_name

    def _entries(self) -> list[os.DirEntry[str]]:
        if not os.path.isdir(self.path):
            raise UserError(f"--path={self.path} is not a directory" if self.path else "--path=DIR is missing")
        return listing.entries(self.path)


def chosen(found: Iterable[str], wanted: str) -> list[str]:
    """Those of the comma-separated list `wanted`; all that were found if it is "".

    Raises:
      UserError: one of them is not there.
    """
    found, names = list(found), [split for split in wanted.split(",") if split]
    for split in names:
        if split not in found:
            raise UserError(f"--splits: {nearest(split, sorted(found))}")
    return names or found


def check_name(split: str, place: str) -> None:
    """Raises UserError unless files of a TFDS data set can be named after a split, which is called so by `place`."""
    if not re.fullmatch(r"[\w-]+", split):
        raise UserError(f"a split cannot be called {split!r}, only by letters, digits, _ and -: rename {place}")
