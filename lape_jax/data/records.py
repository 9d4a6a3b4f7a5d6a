"""Image classification data sets that TFDS prepared as array_record, read without TensorFlow.

Importing this module imports tensorflow_datasets (about half a second), so only whoever needs it should.
"""

import os
import re
import resource

import tensorflow_datasets as tfds

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Example
from lape_jax.errors import UserError, nearest

ARRAY_RECORD = "array_record"


class RecordSource:
    """One split of a TFDS data set; images stay encoded. `files` are those it lies in, relative to `root`."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, image_key: str, label_key: str):
        label = builder.info.features[label_key]
        self.name = f"{builder.info.full_name} {split}"
        self.image_key, self.label_key = image_key, label_key
        self.classes = tuple(label.names or map(str, range(label.num_classes)))
        paths = {str(instruction.filename) for instruction in builder.info.splits[split].file_instructions}
        self.root, self.files = str(builder.data_path), sorted(os.path.basename(path) for path in paths)
        self.records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        name = f"{self.name}[{index}]"
        try:
            record = self.records[index]
        except RuntimeError as error:  # array_record's: damaged or unreadable file
            raise CorruptImage(name, str(error)) from error
        label = record[self.label_key]
        if not 0 <= label < len(self.classes):
            raise UserError(f"{name} has the label {label}, which means none: this split cannot be used")
        return Example(record[self.image_key], label, name)


def tfds_records(name: str, data_dir: str, split: str) -> RecordSource:
    """Opens data_dir/NAME[/CONFIG]/VERSION, as `tfds build` lays it out. Nothing is downloaded.

    Args:
      name: "NAME", "NAME/CONFIG", either with ":VERSION"; the newest version by default.
      data_dir: "" is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      split: a split or a slice of one, such as "train[:90%]" (https://www.tensorflow.org/datasets/splits).

    Raises:
      UserError: there is no such data set, version or split, it is not array_record, or has no image and label.
    """
    builder = open_builder(name, data_dir)
    check_split(builder, split)
    return RecordSource(builder, split, *_image_and_label(builder))


def open_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The description of the data set in data_dir/NAME[/CONFIG]/VERSION, set to array_record; see `tfds_records`.

    Raises:
      UserError: there is no such data set or version, or it is not array_record.
    """
    data_dir = default_dir(data_dir)
    builder = find(name, data_dir)
    formats = sorted(form.value for form in builder.info.available_file_formats())
    if ARRAY_RECORD not in formats:
        raise UserError(f"{builder.data_path} is stored as {', '.join(formats)}; {_how_to_prepare(name, data_dir)}")
    # Where there are several formats; data sources would do the same, but the splits must name the right files before.
    builder.info.set_file_format(ARRAY_RECORD, override=True, override_if_initialized=True)
    return builder


def find(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The same in whatever format it is stored."""
    directory = _find_version(name, data_dir)
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # whatever a half-written or foreign metadata file makes it raise
        raise UserError(f"{directory} is not a readable TFDS data set: {first_line(error)}") from error


def default_dir(data_dir: str) -> str:
    """`data_dir`, or where TFDS looks if it is ""."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _find_version(name: str, data_dir: str) -> str:
    """The directory of the wanted (or newest) version of a data set."""
    found = prepared(data_dir)
    if not name:
        raise UserError(f"data.name is empty; {data_dir} holds {', '.join(found) or 'no TFDS data set'}")
    name, _, version = name.partition(":")
    configs = [known for known in found if known == name or known.startswith(f"{name}/")]
    if name in found:
        configs = [name]
    if not configs:
        there = f"{nearest(name, found)} in {data_dir}" if found else f"{data_dir} holds no TFDS data set"
        raise UserError(f"data.name: {there}; {_how_to_prepare(name, data_dir)}")
    if len(configs) > 1:
        raise UserError(f"data.name: {name!r} has several configs; choose one of {', '.join(configs)}")
    versions = found[configs[0]]
    if version and version not in versions:
        raise UserError(f"data.name: version {nearest(version, versions)} of {configs[0]} in {data_dir}")
    return os.path.join(data_dir, configs[0], version or versions[-1])


def prepared(data_dir: str) -> dict[str, list[str]]:
    """What data_dir holds: "name" or "name/config" -> its versions, oldest first.

    Raises:
      UserError: it is not a directory.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f"data.path {data_dir!r} is not a directory")
    found = {}
    for name in sorted(os.listdir(data_dir)):
        for known in (name, *(f"{name}/{config}" for config in _directories(os.path.join(data_dir, name)))):
            versions = [
                version
                for version in _directories(os.path.join(data_dir, known))
                if re.fullmatch(r"\d+\.\d+\.\d+", version)
                and os.path.exists(os.path.join(data_dir, known, version, "dataset_info.json"))
            ]
            if versions:
                found[known] = sorted(versions, key=lambda version: [int(part) for part in version.split(".")])
    return found


def _directories(path: str) -> list[str]:
    if not os.path.isdir(path):
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def _image_and_label(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The keys of the image and of the class label: the supervised pair if there is one, or else the only ones."""
    features = builder.info.features
    of_kind = {
        kind: [key for key in sorted(features) if isinstance(features[key], kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    pair = builder.info.supervised_keys or ()
    chosen = []
    for kind, keys in of_kind.items():
        supervised = [key for key in keys if key in pair]
        if len(supervised or keys) != 1:
            raise UserError(
                f"{builder.info.full_name} must have one image and one class label, but its features are"
                f" {', '.join(sorted(features))}, of which {kind.__name__}: {', '.join(keys) or 'none'}"
            )
        chosen += supervised or keys
    return chosen[0], chosen[1]


def check_split(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Raises UserError unless the split exists, is not empty, all its files are there, and they can be open at once."""
    splits = builder.info.splits
    name = re.split(r"[\[+]", split)[0]
    if name not in splits and name != "all":
        raise UserError(f"split {nearest(name, splits)} of {builder.info.full_name}")
    try:
        paths = {str(instruction.filename) for instruction in splits[split].file_instructions}
    except ValueError as error:
        raise UserError(f"split {split!r} of {builder.info.full_name}: {first_line(error)}") from error
    if not paths:
        raise UserError(f"split {split!r} of {builder.info.full_name} is empty")
    if missing := sorted(path for path in paths if not os.path.exists(path)):
        raise UserError(
            f"{len(missing)} of the {len(paths)} files of {builder.info.full_name} are missing: {missing[0]}"
        )
    # array_record keeps every file open, and ImageNet has as many (1,024) as many systems allow by default.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + len(paths)
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _how_to_prepare(name: str, data_dir: str) -> str:
    command = f"tfds {name} --path={data_dir}"
    if name == "ade20k":  # which TFDS has not
        command = f"scenes --path=ADEChallengeData2016 --layout=ade20k --out={data_dir}"
    if name == "coco":  # of which TFDS has no masks
        command = f"objects --path=COCO --out={data_dir}"
    return f"prepare it once with: python -m lape_jax.prepare {command}"


def first_line(error: Exception) -> str:
    """The part of an error's message that says what happened."""
    return (str(error) or type(error).__name__).splitlines()[0]
