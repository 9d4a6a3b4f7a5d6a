"""Segmentation data sets that TFDS prepared as array_record, read without TensorFlow.

Importing this module imports tensorflow_datasets (about half a second), so only whoever needs it should.
"""

import tensorflow_datasets as tfds

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.records import check_split, open_builder
from lape_jax.errors import UserError
from lape_jax.tasks.segment import masks
from lape_jax.tasks.segment.masks import MOST_CLASSES
from lape_jax.tasks.segment.scene import Scene

IMAGE_KEY, MASK_KEYS = "image", ("segmentation_mask", "annotation")
# What the maps of data sets mean that say nothing of it in their features: the classes, and the index of the first.
KNOWN = {
    "scene_parse150": (tuple(map(str, range(1, 151))), 1),  # 0 is "other objects"; TFDS has no names
    "oxford_iiit_pet": (("pet", "background", "border"), 1),
}


class SceneRecords:
    """One split of a TFDS data set; images and maps stay encoded."""

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, mask_key: str, classes: tuple[str, ...], first: int
    ):
        self.name, self.mask_key = f"{builder.info.full_name} {split}", mask_key
        self.classes, self.first = classes, first
        features = builder.info.features
        images = [key for key in features if isinstance(features[key], tfds.features.Image)]
        self.records = builder.as_data_source(split, decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Scene:
        name = f"{self.name}[{index}]"
        try:
            record = self.records[index]
        except RuntimeError as error:  # array_record's: damaged or unreadable file
            raise CorruptImage(name, str(error)) from error
        return Scene(record[IMAGE_KEY], record[self.mask_key], name, self.first)


def tfds_scenes(name: str, data_dir: str, split: str) -> SceneRecords:
    """Opens data_dir/NAME[/CONFIG]/VERSION; name, data_dir and split are as in `records.tfds_records`.

    The image is the feature `image`; the map is the data set's one other image, or the one of several that is labelled
    (tfds.features.LabeledImage), or called as in MASK_KEYS. A labelled image has the classes' names and counts them
    from 0, as in what `python -m lape_jax.prepare scenes` writes; other data sets must be among KNOWN.

    TFDS prepares scene_parse150 from the benchmark's *instance* maps: red is one of 100 object classes, green counts
    objects (CSAILVision/placeschallenge, instancesegmentation/README). That is not ADE20K's 150 classes, so only a copy
    whose maps were replaced by the official ones, of one channel, is accepted.

    Raises:
      UserError: there is no such data set, version or split, it is not array_record, has no image and map, does not say
        what the values in its maps mean, or its maps hold colours.
    """
    builder = open_builder(name, data_dir)
    check_split(builder, split)
    mask_key = _mask_key(builder)
    source = SceneRecords(builder, split, mask_key, *_classes(builder, mask_key))
    _check_first(source, builder)
    return source


def has_maps(name: str, data_dir: str) -> bool:
    """Whether a data set that is there has maps of labels; False if it cannot be opened."""
    try:
        builder = open_builder(name, data_dir)
    except UserError:
        return False
    features = builder.info.features
    return builder.name in KNOWN or any(isinstance(features[key], tfds.features.LabeledImage) for key in features)


def _mask_key(builder: tfds.core.DatasetBuilder) -> str:
    features = builder.info.features
    images = [key for key in sorted(features) if isinstance(features[key], tfds.features.Image)]
    others = [key for key in images if key != IMAGE_KEY]
    chosen = others
    for preferred in (
        [key for key in others if isinstance(features[key], tfds.features.LabeledImage)],
        [key for key in others if key in MASK_KEYS],
    ):
        if len(chosen) > 1 and preferred:
            chosen = preferred
    if IMAGE_KEY not in images or len(chosen) != 1:
        raise UserError(
            f"{builder.info.full_name} must have an image 'image' and one map of labels, but its features are "
            f"{', '.join(sorted(features))}, of which images: {', '.join(images) or 'none'}"
        )
    return chosen[0]


def _classes(builder: tfds.core.DatasetBuilder, mask_key: str) -> tuple[tuple[str, ...], int]:
    """The names, and the index of the first."""
    feature = builder.info.features[mask_key]
    if isinstance(feature, tfds.features.LabeledImage) and feature.num_classes:
        if feature.num_classes > MOST_CLASSES:
            raise UserError(
                f"{builder.info.full_name} has {feature.num_classes} classes, but there can be {MOST_CLASSES} at most, "
                f"of values 0 to 254"
            )
        return tuple(feature.names or map(str, range(feature.num_classes))), 0
    if builder.name in KNOWN:
        return KNOWN[builder.name]
    raise UserError(
        f"{builder.info.full_name} does not say what the values of {mask_key!r} mean: it must be a LabeledImage with "
        f"names, or the data set one of {', '.join(KNOWN)}"
    )


def _check_first(source: SceneRecords, builder: tfds.core.DatasetBuilder) -> None:
    """Raises UserError if the first map holds colours; whether it can be read shows when it is."""
    try:
        scene = source[0]
        masks.read_indices(scene.mask, f"the mask of {scene.name}")
    except CorruptImage:
        pass
    except UserError as error:
        if builder.name != "scene_parse150":
            raise
        raise UserError(
            f"{builder.info.full_name} holds the instance maps that TFDS prepares it from (100 object classes in red, "
            f"objects in green), not ADE20K's 150 classes: use data.source=ade20k with ADEChallengeData2016, or "
            f"what `python -m lape_jax.prepare scenes` makes of it"
        ) from error
