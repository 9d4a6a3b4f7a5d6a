"""The files of a TFDS data set in array_record, written without TensorFlow: images and labels, maps of labels, or ids.

    DATA_DIR/NAME/VERSION/NAME-SPLIT.array_record-00000-of-00313 ..., features.json, label.labels.txt, dataset_info.json

TFDS takes a directory for a data set once dataset_info.json is in it, so this one is written last. Importing this
module imports tensorflow_datasets.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from lape_jax import atomic
from lape_jax.errors import UserError

FEATURES = "tensorflow_datasets.core.features"
# The feature beside the image: a class, an image of classes, or the number by which other files know the image.
LABEL, MAP, NUMBER = "label", "segmentation_mask", "image_id"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class Shard(NamedTuple):
    """What the description says of a shard: how many records it has, and their bytes."""

    records: int
    bytes: int


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """
    >>> shard_name("pets", "train", 3, 20)
    'pets-train.array_record-00003-of-00020'
    """
    return f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"


def record(image: bytes, target: int | bytes, file_name: str, feature: str = LABEL) -> bytes:
    """A serialised example of image, LABEL, MAP or NUMBER, and file_name. Equal arguments give equal bytes.

    Args:
      target: the class, a PNG file of classes, or the number.
      feature: which of these it is.
    """
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    values = features[feature].bytes_list if feature == MAP else features[feature].int64_list
    values.value.append(target)
    features["file_name"].bytes_list.value.append(os.fsencode(file_name))
    return example.SerializeToString(deterministic=True)


def write_shard(path: Path, records: Iterable[bytes]) -> Shard:
    """Writes an array_record file as TFDS does, all or nothing: under this name there is never half of it.

    Raises:
      UserError: it cannot be written.
    """
    count = size = 0
    with atomic.beside(path) as partial:
        try:
            writer = ArrayRecordWriter(str(partial), "group_size:1")
            for data in records:
                writer.write(data)
                count, size = count + 1, size + len(data)
            writer.close()
            written = ArrayRecordReader(str(partial)).num_records()
        except RuntimeError as error:  # array_record's: disk full, no permission, ...
            raise OSError(str(error)) from error
        if written != count:
            raise OSError(f"{partial} holds {written} records after {count} were written to it")
    return Shard(count, size)


def write_description(
    directory: Path,
    name: str,
    version: str,
    shards: Mapping[str, Sequence[Shard]],
    classes: Sequence[str],
    about: str,
    target: str = LABEL,
) -> None:
    """Makes a data set of the shards (split -> all of them, in order) that lie in `directory`.

    Args:
      classes: of LABEL and MAP; none of NUMBER.
      target: LABEL, MAP or NUMBER.

    Raises:
      UserError: a class has a name that label.labels.txt cannot hold.
      OSError: it cannot be written.
    """
    check_classes(classes)
    features = {
        "image": {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": _image(3)},
        target: {LABEL: _label, MAP: _map, NUMBER: _number}[target](len(classes)),
        "file_name": {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}},
    }
    whole = {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    info = {
        "name": name,
        "version": version,
        "description": about,
        "fileFormat": "array_record",
        "splits": [
            {
                "name": split,
                "filepathTemplate": TEMPLATE,
                "shardLengths": [str(shard.records) for shard in parts],
                "numBytes": str(sum(shard.bytes for shard in parts)),
            }
            for split, parts in shards.items()
        ],
    }
    if target != NUMBER:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": target}]}}
        atomic.write(directory / f"{target}.labels.txt", "".join(f"{name}\n" for name in classes))
    atomic.write(directory / "features.json", json.dumps(whole, indent=2))
    atomic.write(directory / "dataset_info.json", json.dumps(info, indent=2))


def _image(channels: int) -> dict[str, Any]:
    return {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", str(channels)]}}


def _label(classes: int) -> dict[str, Any]:
    return {
        "pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(classes)},
    }


def _map(classes: int) -> dict[str, Any]:
    return {
        "pythonClassName": f"{FEATURES}.labeled_image.LabeledImage",
        "image": _image(1) | {"encodingFormat": "png", "label": {"numClasses": str(classes)}},
    }


def _number(classes: int) -> dict[str, Any]:
    return {
        "pythonClassName": f"{FEATURES}.scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
    }


def check_classes(classes: Sequence[str]) -> None:
    """Raises UserError unless TFDS, which strips the lines of label.labels.txt, can give these names back."""
    for name in classes:
        if name != name.strip() or not name or "\n" in name or name.encode(errors="replace").decode() != name:
            raise UserError(f"the class name {name!r} cannot be stored: it has blanks at an end, or is not plain text")


def make_name(text: str) -> str:
    """A name for a data set that is as much like `text` as TFDS allows.

    >>> make_name("My Photos (2)"), make_name("2024")
    ('my_photos_2', 'images_2024')
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "images"
    return name if name[0].isalpha() else f"images_{name}"


def check_name(name: str) -> None:
    """Raises UserError unless a data set can be called this (--as)."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"--as={name}: the name must consist of a-z, 0-9 and _, beginning with a letter")
