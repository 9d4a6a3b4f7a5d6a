"""Tiny data sets, written to disk for the tests."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lape_jax.data.example import Example
from lape_jax.data.sources import ArraySource


def _encode(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(pixels, form="PNG", **options) -> the encoded file."""
    return _encode


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A smooth image with some noise (40, 60, 3), which does not compress to nothing."""
    y, x = np.mgrid[:40, :60]
    noise = np.random.default_rng(0).integers(0, 30, (40, 60, 3))
    return (np.stack([y * 5, x * 3, x + y], -1) + noise).astype(np.uint8)


class EncodedSource:
    """Examples with given files; counts how often each is read."""

    classes = ("a", "b")

    def __init__(self, files: list[bytes]):
        self.files = files
        self.reads = [0] * len(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        self.reads[index] += 1
        return Example(self.files[index], index, f"image {index}")


@pytest.fixture(scope="session")
def encoded_source() -> type[EncodedSource]:
    return EncodedSource


@pytest.fixture(scope="session")
def numbered() -> Callable[[int], ArraySource]:
    """numbered(n) -> n noise images 12x16x3, each of which is its own class."""

    def make(count: int) -> ArraySource:
        images = np.random.default_rng(1).integers(0, 256, (count, 12, 16, 3), np.uint8)
        return ArraySource(images, range(count), [f"image {i}" for i in range(count)], ())

    return make


@pytest.fixture(scope="session")
def write_tfds() -> Callable[..., Path]:
    """write_tfds(directory, splits, ...): a prepared TFDS data set, made with array_record but without TensorFlow.

    directory is DATA_DIR/NAME[/CONFIG]/VERSION; splits: name -> list of (encoded image, label), one shard per five.
    """

    def write(
        directory: Path,
        splits: dict[str, list[tuple[bytes, int]]],
        *,
        config: str = "",
        form: str = "array_record",
        extra: dict[str, str] | None = None,
        supervised: bool = True,
    ) -> Path:
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2

        directory.mkdir(parents=True)
        name = directory.parts[-3] if config else directory.parts[-2]
        kinds = {"image": "Image", "label": "ClassLabel", **(extra or {})}
        modules = {"Image": "image_feature", "ClassLabel": "class_label_feature"}
        contents = {
            "Image": {"image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}, "encodingFormat": "png"}},
            "ClassLabel": {"classLabel": {"numClasses": "3"}},
        }
        features = {
            key: {"pythonClassName": f"tensorflow_datasets.core.features.{modules[kind]}.{kind}", **contents[kind]}
            for key, kind in kinds.items()
        }
        whole = {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": features},
        }
        (directory / "features.json").write_text(json.dumps(whole))
        (directory / "label.labels.txt").write_text("cat\ndog\nowl\n")
        infos = []
        for split, examples in splits.items():
            shards = [examples[i : i + 5] for i in range(0, len(examples), 5)]
            for number, shard in enumerate(shards):
                file = directory / f"{name}-{split}.{form}-{number:05d}-of-{len(shards):05d}"
                writer = ArrayRecordWriter(str(file), "group_size:1")
                for image, label in shard:
                    record = tf_example_pb2.Example()
                    for key, kind in kinds.items():
                        value = record.features.feature[key]
                        if kind == "Image":
                            value.bytes_list.value.append(image)
                        else:
                            value.int64_list.value.append(label)
                    writer.write(record.SerializeToString())
                writer.close()
            template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            lengths = [str(len(shard)) for shard in shards]
            infos.append({"name": split, "shardLengths": lengths, "numBytes": "1", "filepathTemplate": template})
        pair = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
        info = {"name": name, "version": directory.name, "fileFormat": form, "splits": infos}
        info |= {"configName": config} if config else {}
        info |= {"supervisedKeys": pair} if supervised else {}
        (directory / "dataset_info.json").write_text(json.dumps(info))
        return directory

    return write
