"""Data sets to detect objects in that `python -m lape_jax.prepare objects` has written, read without TensorFlow.

The images lie in array_record files; SPLIT.json beside them has the objects, in COCO's format, in the same order.
Importing this module imports tensorflow_datasets (about half a second), so only whoever needs it should.
"""

import functools
import os
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.offline.tfds_files import NUMBER
from lape_jax.data.records import check_split, open_builder
from lape_jax.errors import UserError
from lape_jax.tasks.detect import coco, sources
from lape_jax.tasks.detect.coco import Annotations, Entry, Left
from lape_jax.tasks.detect.photo import Photo


class PhotoRecords:
    """Images of one split of a TFDS data set, which stay encoded, and what is in them.

    Args:
        builder: what TFDS knows the data set by.
        split: the name of the split.
        entries, ids, left: as of `lape_jax.tasks.detect.sources.PhotoFiles`.
        places: number of an image -> the number of its record.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        entries: Sequence[Entry],
        ids: Mapping[str, int],
        left: Sequence[Left],
        places: Mapping[int, int],
    ):
        self.name, self.entries, self.ids, self.left = f"{builder.info.full_name} {split}", entries, ids, tuple(left)
        self.classes, self.files, self._places = tuple(ids), [entry.file for entry in entries], places
        self.records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Photo:
        number, file, objects = self.entries[index]
        return Photo(functools.partial(self._image, number, file), objects, self._called(number, file), number)

    def _called(self, number: int, file: str) -> str:
        return f"{self.name}[{self._places[number]}], {file},"

    def _image(self, number: int, file: str) -> bytes:
        try:
            record = self.records[self._places[number]]
        except RuntimeError as error:  # array_record's: damaged or unreadable file
            raise CorruptImage(self._called(number, file), str(error)) from error
        if record[NUMBER] != number:
            raise UserError(
                f"{self._called(number, file)} holds image {record[NUMBER]}, but the JSON file has {number}"
            )
        return record["image"]


def tfds_photos(
    name: str, data_dir: str, split: str, train_split: str, training: bool, masks: bool = True
) -> PhotoRecords:
    """Opens data_dir/NAME/VERSION; name and data_dir are as in `lape_jax.data.records.tfds_records`.

    Args:
        split, train_split: whole splits.
        training, masks: see `lape_jax.tasks.detect.sources`.

    Raises:
        UserError: there is no such data set or split, `prepare objects` has not written it, files of it do not belong
            together, or as `lape_jax.tasks.detect.sources.open_photos`.
    """
    builder, file = opened(name, data_dir, split)
    found = coco.read(file, masks)
    if not training:
        sources.check_classes(tuple(found.ids), file, os.path.join(builder.data_path, f"{train_split}.json"))
    return of_annotations(builder, split, found, *sources.chosen(found, file, training))


def opened(name: str, data_dir: str, split: str) -> tuple[tfds.core.DatasetBuilder, str]:
    """The data set, and the file of the split's objects."""
    builder = open_builder(name, data_dir)
    check_split(builder, split)
    file = os.path.join(builder.data_path, f"{split}.json")
    if NUMBER not in builder.info.features or not os.path.isfile(file):
        raise UserError(
            f"{builder.info.full_name} has no file {split}.json of objects: to detect, a data set must be written by "
            f"`python -m lape_jax.prepare objects`, and its splits be read as a whole"
        )
    return builder, file


def of_annotations(
    builder: tfds.core.DatasetBuilder,
    split: str,
    found: Annotations,
    entries: Sequence[Entry],
    ids: Mapping[str, int],
    left: Sequence[Left],
) -> PhotoRecords:
    """The images `entries` of a split, of which all are `found`."""
    count = builder.info.splits[split].num_examples
    if count != len(found.entries):
        raise UserError(
            f"{builder.info.full_name} has {count} images in split {split!r}, but {len(found.entries)} in {split}.json"
        )
    places = {entry.number: place for place, entry in enumerate(found.entries)}
    return PhotoRecords(builder, split, entries, ids, left, places)


def has_objects(name: str, data_dir: str) -> bool:
    """Whether a data set that is there was written by `prepare objects`; False if it cannot be opened."""
    try:
        builder = open_builder(name, data_dir)
    except UserError:
        return False
    files = (os.path.join(builder.data_path, f"{split}.json") for split in builder.info.splits)
    return NUMBER in builder.info.features and any(map(os.path.isfile, files))
