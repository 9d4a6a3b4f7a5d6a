"""Packs: what is written is read, on canvases or as images, and what is damaged is said in a line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lape_jax.data import canvas, order, packed
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Example
from lape_jax.data.offline import pack, parts
from lape_jax.errors import UserError
from tests.reading import reading

SIDE = 16


class Pictures:
    """Noise of many sizes, in seven classes."""

    classes = tuple("abcdefg")

    def __init__(self, count):
        rng = np.random.default_rng(count)
        self.images = [rng.integers(0, 256, (*rng.integers(1, 30, 2), 3), np.uint8) for _ in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.images[index] is None:
            raise CorruptImage(f"picture {index}", "no reason")
        return Example(self.images[index], index % 7, f"picture {index}")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write(out, *, train=23, val=5, say=lambda line: None, max_corrupt=0, lost=(), **options):
    sources = {"train": Pictures(train), "val": Pictures(val)}
    for index in lost:
        sources["train"].images[index] = None
    options = {"side": SIDE, "orientation": "stored", "origin": "noise"} | options
    form = pack.Pack(Path(out), options.pop("side"), options.pop("orientation"), shard_size=8)
    pack.write(form, sources, options, parts.How(2, max_corrupt, say))
    return sources["train"]


@pytest.fixture
def made(tmp_path):
    """The pack, and the pictures of its training split, in three files."""
    return str(tmp_path / "pack"), write(tmp_path / "pack")


def content(directory):
    return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


def batches(source, **changes):
    options = {"seed": 3, "batch_size": 4, "start_step": 0, "total_steps": 9, "threads": 3, "max_corrupt": 0}
    return canvas.train_batches(source, reading(**options | changes)[0])


def test_images_fit_and_are_read_as_they_were_written(made):
    path, pictures = made
    source = packed.open_packed(path, "train", SIDE)
    assert (len(source), source.classes, source.side) == (23, pictures.classes, SIDE)
    kept = 0
    for index, image in enumerate(pictures.images):
        example = source[index]
        assert (example.label, example.name) == (index % 7, f"{path} train[{index}]")
        assert example.image.shape[:2] == canvas.shrunk(*image.shape[:2], SIDE) == tuple(source.sizes[index])
        np.testing.assert_array_equal(example.image, canvas.fit(image, SIDE))
        kept += example.image.shape == image.shape
    assert 0 < kept < 23


def test_batches_are_those_of_the_order_on_canvases(made):
    source = packed.open_packed(made[0], "train")
    found = list(batches(source))
    for step, batch in enumerate(found):
        indices = order.batch_indices(3, step, 4, 23)
        assert batch["label"].tolist() == (indices % 7).tolist()
        assert batch["mask"].tolist() == [1] * 4
        np.testing.assert_array_equal(batch["size"], source.sizes[indices])
        for row, index in enumerate(indices):
            np.testing.assert_array_equal(batch["image"][row], canvas.whole(source[int(index)].image, SIDE))
    for shares in (
        [list(batches(source, start_step=4))],
        zip(*(list(batches(source, start_step=4, process_index=i, process_count=2)) for i in range(2)), strict=True),
    ):
        shares = shares[0] if isinstance(shares, list) else shares
        for whole, part in zip(found[4:], shares, strict=True):
            parts = part if isinstance(part, tuple) else (part,)
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([one[name] for one in parts]), array)


def test_evaluation_covers_every_example_with_a_known_class(made):
    source = packed.open_packed(made[0], "train")
    other = source.relabelled(("z", "b"), (1, 0, -1, -1, -1, -1, -1))
    del source  # which closes no file that the other reads
    found = list(canvas.eval_batches(other, batch_size=8, threads=2))
    masks = np.concatenate([batch["mask"] for batch in found])
    np.testing.assert_array_equal(masks, [index < 23 and index % 7 < 2 for index in range(24)])
    labels = np.concatenate([batch["label"] for batch in found])
    np.testing.assert_array_equal(labels, (np.arange(24) % 7 == 0) * masks)
    images = np.concatenate([batch["image"] for batch in found])
    assert not images[masks == 0].any()
    assert images[1].any()


class Killed(BaseException):
    """Passes every `except Exception`, as a kill would."""


def kill_at(moment, patch):
    """Raises Killed instead of the n-th renaming of a file or directory."""
    calls = iter(range(1, moment))

    def killing(real):
        def renaming(*args):
            if next(calls, None) is None:
                raise Killed
            return real(*args)

        return renaming

    for name in ("replace", "rename"):
        patch.setattr(os, name, killing(getattr(os, name)))


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(made, tmp_path):
    whole, moment, reused = content(made[0]), 0, set()
    while True:
        moment += 1
        out, lines = tmp_path / str(moment), []
        with pytest.MonkeyPatch.context() as patch:
            kill_at(moment, patch)
            try:
                write(out)
                break
            except Killed:
                assert not out.exists()
        with pytest.raises(UserError, match=r"only begun as .*incomplete: prepare pack has to be run again"):
            packed.open_packed(str(out), "train")
        write(out, say=lines.append)
        assert content(out) == whole
        assert not out.with_name(f"{moment}.incomplete").exists()
        reused |= {line.split("; ")[-1] for line in lines if "were there" in line}
    assert moment > 12
    assert {f"{count} were there already" for count in (7, 15, 23, 28)} == reused


def test_a_whole_pack_is_left_alone_and_others_are_refused(made, tmp_path):
    lines = []
    write(made[0], say=lines.append)
    assert lines == [f"{made[0]} is there already, whole"]
    with pytest.raises(UserError, match=r"written with other options \(side was 16 and is 8"):
        write(made[0], side=8)
    with pytest.raises(UserError, match="its source had other splits, classes or files"):
        write(made[0], train=24)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo").touch()
    with pytest.raises(UserError, match="mine is there already, and is no pack"):
        write(tmp_path / "mine")


def test_what_cannot_be_read_is_left_out_up_to_a_limit(tmp_path):
    with pytest.raises(UserError, match=r"more than 1 images \(--max-corrupt\) cannot be read"):
        write(tmp_path / "pack", lost=(3, 20), max_corrupt=1)
    write(tmp_path / "pack", lost=(3, 20), max_corrupt=2)
    assert len(packed.open_packed(str(tmp_path / "pack"), "train")) == 21
    assert list(packed.describe(str(tmp_path / "pack"))["left_out"]) == ["picture 3", "picture 20"]


def damage(path, name, change):
    file = Path(path) / name
    file.write_bytes(change(file.read_bytes()))


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


PIXELS, INDEX = "train-00001-of-00003.pixels", "train-00001-of-00003.index"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            PIXELS,
            lambda data: data[:-1],
            r"00003\.pixels has [\d,]+ bytes instead of [\d,]+: it is damaged, or not copied",
        ),
        (PIXELS, None, r"00003\.pixels cannot be read: No such file"),
        (INDEX, None, r"00003\.index cannot be read: No such file"),
        (INDEX, flipped, r"00003\.index is damaged: it does not agree with its checksum in pack\.json"),
        ("pack.json", None, r"has no pack\.json, so it is no pack: python -m lape_jax\.prepare pack makes one"),
        ("pack.json", lambda data: data[:99], r"pack\.json cannot be read: "),
        ("pack.json", lambda data: b"[]", r"pack\.json is not the description of a pack of format 1"),
        ("pack.json", lambda data: data.replace(b'"side"', b'"sid"'), r"pack\.json is damaged: it lacks 'side'"),
        ("pack.json", lambda data: data.replace(b'"g"', b'"f"').replace(b'"f",', b""), r"does not fit pack\.json"),
    ],
)
def test_damage_is_said_when_a_pack_is_opened(made, name, change, message):
    if change is None:
        (Path(made[0]) / name).unlink()
    else:
        damage(made[0], name, change)
    with pytest.raises(UserError, match=message) as caught:
        packed.open_packed(made[0], "train", SIDE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "split", "side", "message"),
    [
        ("", "test", SIDE, r"split 'test' is not one of train, val"),
        ("", "train", 32, r"packed with side 16, and data\.side is 32: set --config\.data\.side=16"),
        ("gs://bucket/pack", "train", SIDE, r"'gs://bucket/pack' is not on a file system: copy or mount the pack"),
        ("/nowhere", "train", SIDE, r"data\.path '/nowhere' is not a directory"),
    ],
)
def test_what_is_not_there_is_said(made, path, split, side, message):
    with pytest.raises(UserError, match=message):
        packed.open_packed(path or made[0], split, side)


def test_flipped_bits_are_found_and_lost_files_are_skipped_in_training(made):
    source = packed.open_packed(made[0], "train")
    damage(made[0], PIXELS, flipped)  # in place, so that the open file has it, too
    index = 14  # the last of the second file
    with pytest.raises(CorruptImage, match=r"train\[14\] cannot be read: its pixels do not agree with their checksum"):
        packed.open_packed(made[0], "train")[index]
    os.truncate(Path(made[0]) / PIXELS, 0)
    reader = batches(source, max_corrupt=8, total_steps=5)
    for step, batch in enumerate(reader):
        indices = order.batch_indices(3, step, 4, 23)
        lost = (indices >= 7) & (indices < 15)
        np.testing.assert_array_equal(batch["mask"], ~lost)
        assert not batch["image"][lost].any()
        assert not batch["size"][lost].any()
    assert set(reader.corrupt.values()) == {"its file ends before it"}


def test_the_description_names_classes_and_files(made):
    about = json.loads((Path(made[0]) / "pack.json").read_text())
    assert about["classes"] == list("abcdefg")
    assert [shard["examples"] for shard in about["splits"]["train"]] == [7, 8, 8]
