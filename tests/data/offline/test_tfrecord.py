import json
import struct

import pytest

from lape_jax.data.offline import tfds_files, tfrecord
from lape_jax.data.records import find, tfds_records
from lape_jax.errors import UserError


def frame(data):
    """A record of a tfrecord file; the checksums are not looked at."""
    return struct.pack("<Q", len(data)) + b"crc1" + data + b"crc2"


@pytest.fixture
def old(tmp_path, write_tfds):
    """old/1.0.0 in tfrecord: 7 training examples in two files, and 1 of test; their images are just text."""
    splits = {"train": [(f"image {number}".encode(), number % 3) for number in range(7)], "test": [(b"test", 1)]}
    directory = write_tfds(tmp_path / "old/1.0.0", splits, form="tfrecord")
    for split, examples in splits.items():
        for number, file in enumerate(sorted(directory.glob(f"old-{split}.tfrecord*"))):
            part = examples[5 * number :][:5]
            file.write_bytes(b"".join(frame(tfds_files.record(*example, "")) for example in part))
    return directory


def test_the_records_are_those_of_before(old, tmp_path):
    lines = []
    tfrecord.convert(find("old", str(tmp_path)), lines.append)
    assert lines == [
        "train: 7 records in 2 files of array_record",
        "test: 1 records in 1 files of array_record",
    ]
    for _ in range(2):
        source = tfds_records("old", str(tmp_path), "train")
        assert [source[index].image for index in range(7)] == [f"image {number}".encode() for number in range(7)]
        assert [source[index].label for index in range(7)] == [0, 1, 2, 0, 1, 2, 0]
        assert source.files == [f"old-train.array_record-0000{number}-of-00002" for number in range(2)]
        for file in old.glob("*tfrecord*"):  # are not needed any more
            file.unlink()
    info = json.loads((old / "dataset_info.json").read_text())
    assert (info["fileFormat"], info["alternativeFileFormats"]) == ("tfrecord", ["array_record"])


def test_an_interrupted_conversion_is_not_visible_and_goes_on(old, tmp_path, monkeypatch):
    real, calls = tfds_files.write_shard, []

    def write_shard(path, records):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(path.name)
        return real(path, records)

    monkeypatch.setattr(tfds_files, "write_shard", write_shard)
    with pytest.raises(KeyboardInterrupt):
        tfrecord.convert(find("old", str(tmp_path)), str)
    with pytest.raises(UserError, match=r"old/1\.0\.0 is stored as tfrecord"):
        tfds_records("old", str(tmp_path), "train")
    monkeypatch.setattr(tfds_files, "write_shard", real)
    before = (old / calls[0]).stat().st_mtime_ns
    tfrecord.convert(find("old", str(tmp_path)), str)
    assert len(tfds_records("old", str(tmp_path), "train")) == 7
    assert (old / calls[0]).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "00001-of-00002 is truncated or damaged after 1 records"),
        (lambda data: data[:8], "is truncated or damaged after 0 records"),
        (lambda data: b"\xff" * 8 + data[8:], "is truncated or damaged after 0 records"),
        (lambda data: data + frame(b"x"), "00001-of-00002 has 3 records, but its description says 2"),
        (lambda data: b"", "has 0 records, but its description says 2"),
        (None, "old-train.tfrecord-00001-of-00002: No such file or directory"),
    ],
)
def test_damaged_files(old, tmp_path, change, message):
    file = old / "old-train.tfrecord-00001-of-00002"
    file.write_bytes(change(file.read_bytes())) if change else file.unlink()
    with pytest.raises(UserError, match=message):
        tfrecord.convert(find("old", str(tmp_path)), str)
    assert not (old / "old-train.array_record-00001-of-00002").exists()
    with pytest.raises(UserError, match="is stored as tfrecord"):
        tfds_records("old", str(tmp_path), "train")
