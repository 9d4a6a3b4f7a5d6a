import errno
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from lape_jax.data.offline import cifar
from lape_jax.data.sources import arrays
from lape_jax.errors import UserError

TEN = [f"class{number}" for number in range(10)]
HUNDRED = [f"fine{number}" for number in range(100)]
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


def made_up(count, classes, seed):
    """Images (n, h, w, c) and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, classes, count)


def stored(images):
    """As in the files: all of red, then of green, then of blue."""
    return np.concatenate([images[..., channel].reshape(len(images), -1) for channel in range(3)], 1)


def python2(value):
    """What pickle protocol 2 of Python 2 writes, where text is bytes: the official files."""
    match value:
        case dict():
            return b"}(" + b"".join(python2(part) for item in value.items() for part in item) + b"u"
        case list():
            return b"](" + b"".join(map(python2, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(python2, value)) + b"t"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str() | bytes():
            data = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(data)) + data
        case None:
            return b"N"
        case np.dtype():
            state = (3, "|", None, None, None, -1, -1, 0)
            return b"cnumpy\ndtype\n" + python2((value.str[1:], 0, 1)) + b"R" + python2(state) + b"b"
        case np.ndarray():
            head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,)) + python2("b") + b"tR"
            state = (1, value.shape, value.dtype, not value.flags.c_contiguous, value.tobytes("A"))
            return head + python2(state) + b"b"


def pickled(value):
    return b"\x80\x02" + python2(value) + b"."


@pytest.fixture
def ten():
    """CIFAR-10 with three images per file: name of a batch -> (images, labels)."""
    return {name: made_up(3, 10, seed) for seed, name in enumerate([*BATCHES, "test_batch"])}


def binary_ten(ten):
    files = {"batches.meta.txt": "\n".join([*TEN, "", ""]).encode()}
    for name, (images, labels) in ten.items():
        files[f"{name}.bin"] = np.concatenate([labels[:, None].astype(np.uint8), stored(images)], 1).tobytes()
    return files


def python_ten(ten):
    files = {"batches.meta": pickled({"num_cases_per_batch": 3, "label_names": TEN, "num_vis": 3072})}
    for name, (images, labels) in ten.items():
        batch = {"data": stored(images), "labels": labels.tolist(), "batch_label": name, "filenames": ["a.png"] * 3}
        files[name] = pickled(batch)
    return files


def write(directory, files):
    directory.mkdir(parents=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return str(directory)


@pytest.mark.parametrize(("layout", "title"), [(binary_ten, "CIFAR-10 (binary)"), (python_ten, "CIFAR-10 (Python)")])
def test_cifar10(ten, tmp_path, layout, title):
    path = write(tmp_path / "files", layout(ten))
    assert cifar.convert(path, tmp_path / "out") == (title, {"val": 3, "train": 15})
    train, val = (arrays(str(tmp_path / "out"), split) for split in ("train", "val"))
    assert train.classes == val.classes == tuple(TEN)
    np.testing.assert_array_equal(train.images, np.concatenate([ten[name][0] for name in BATCHES]))
    np.testing.assert_array_equal(train.labels, np.concatenate([ten[name][1] for name in BATCHES]))
    np.testing.assert_array_equal(val.images, ten["test_batch"][0])
    np.testing.assert_array_equal(val.labels, ten["test_batch"][1])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["train.npz", "val.npz"]


def test_cifar100_takes_the_fine_labels(tmp_path):
    (images, fine), coarse = made_up(4, 100, 0), np.array([1, 2, 3, 4])
    rows = np.concatenate([coarse[:, None], fine[:, None]], 1).astype(np.uint8)
    data = np.concatenate([rows, stored(images)], 1).tobytes()
    names = "\n".join(HUNDRED).encode()
    binary = {"train.bin": data, "test.bin": data, "fine_label_names.txt": names, "coarse_label_names.txt": b"x\n"}
    batch = {"filenames": ["a.png"], "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
    batch |= {"data": stored(images)}
    meta = pickled({"fine_label_names": HUNDRED, "coarse_label_names": ["x"]})
    python = {"train": pickled(batch), "test": pickled(batch), "meta": meta}
    for kind, files in (("binary", binary), ("Python", python)):
        found = cifar.convert(write(tmp_path / kind, files), tmp_path / f"{kind}_out")
        assert found == (f"CIFAR-100 ({kind})", {"val": 4, "train": 4})
        source = arrays(str(tmp_path / f"{kind}_out"), "val")
        np.testing.assert_array_equal(source.images, images)
        np.testing.assert_array_equal(source.labels, fine)
        assert source.classes == tuple(HUNDRED)


def test_files_are_found_one_directory_below_and_in_an_archive(ten, tmp_path):
    write(tmp_path / "a" / "cifar-10-batches-bin", binary_ten(ten))
    assert cifar.convert(str(tmp_path / "a"), tmp_path / "from_directory")[0] == "CIFAR-10 (binary)"
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, data in python_ten(ten).items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert cifar.convert(str(tmp_path / "cifar-10-python.tar.gz"), tmp_path / "from_tar")[0] == "CIFAR-10 (Python)"
    for name in ("train.npz", "val.npz"):
        assert (tmp_path / "from_directory" / name).read_bytes() == (tmp_path / "from_tar" / name).read_bytes()


class Malicious:
    def __reduce__(self):
        return print, ("it was run",)


def test_a_pickle_runs_nothing(ten, tmp_path):
    files = python_ten(ten) | {"batches.meta": pickle.dumps({"label_names": Malicious()}, protocol=2)}
    with pytest.raises(
        UserError, match=r"no intact CIFAR-10 \(Python\): it names .*print, which no official file does"
    ):
        cifar.convert(write(tmp_path / "a", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (
            binary_ten,
            {"data_batch_3.bin": None},
            r"CIFAR-10 \(binary\), but not all of it: data_batch_3.bin is missing",
        ),
        (binary_ten, {"data_batch_3.bin": b"x" * 3072}, r"3072 bytes are no multiple of 3073"),
        (binary_ten, {"test_batch.bin": b"\x0a" + bytes(3072)}, "labels are not those of 10 classes"),
        (binary_ten, {"test_batch.bin": b""}, "labels are not those of 10 classes"),
        (python_ten, {"data_batch_1": b"\x80\x02}(U\x04data"}, r"no intact CIFAR-10 \(Python\)"),
        (python_ten, {"data_batch_1": b""}, r"no intact CIFAR-10 \(Python\)"),
        (python_ten, {"test_batch": pickled({"labels": [1]})}, "no intact .*data"),
        (python_ten, {"test_batch": pickled({"data": np.zeros((1, 3072)), "labels": [1]})}, "'f8', not uint8"),
        (python_ten, {"test_batch": pickled({"data": np.zeros((2, 3072), "u1", "F"), "labels": [1, 1]})}, "row by row"),
        (python_ten, {"test_batch": pickled({"data": np.zeros((1, 9), "u1"), "labels": [1]})}, r"uint8 \(1, 9\)"),
    ],
)
def test_damage_is_told(ten, tmp_path, layout, change, message):
    files = {name: data for name, data in (layout(ten) | change).items() if data is not None}
    with pytest.raises(UserError, match=message):
        cifar.convert(write(tmp_path / "a", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(ten, tmp_path, monkeypatch):
    path = write(tmp_path / "a", binary_ten(ten))
    cifar.convert(path, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    (tmp_path / "a/test_batch.bin").write_bytes((tmp_path / "a/data_batch_1.bin").read_bytes())
    real = np.savez

    def savez(file, **arrays):
        real(file, **arrays)
        if "classes" in arrays:  # train.npz
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(UserError, match=r"out/train.npz cannot be written: No space left on device"):
        cifar.convert(path, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_what_is_not_there_or_cannot_be_written(ten, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds none of the official files"):
        cifar.convert(str(tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(UserError, match=r"'.*/nowhere' cannot be read: No such file"):
        cifar.convert(str(tmp_path / "nowhere"), tmp_path / "out")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(UserError, match="cannot be read"):
        cifar.convert(str(tmp_path / "text"), tmp_path / "out")
    with pytest.raises(UserError, match="text cannot be written: File exists"):
        cifar.convert(write(tmp_path / "a", binary_ten(ten)), tmp_path / "text")
