"""The command line; what the commands do is tested in tests/data/offline."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from lape_jax import cli, prepare
from lape_jax.data.records import tfds_records
from lape_jax.tasks.segment import recipes
from lape_jax.tasks.segment.sources import open_scenes
from tests.tasks.detect import samples


@pytest.fixture
def photos(tmp_path):
    """A directory with one image of 20x30 in train/ and val/ each."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(file, "JPEG")
    for split in ("train", "val"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
        (tmp_path / "photos" / split / "cat" / "1.jpg").write_bytes(file.getvalue())
    return tmp_path / "photos"


@pytest.fixture
def run(capsys, monkeypatch):
    """run(*arguments) -> exit code, lines on stdout, text on stderr."""
    monkeypatch.setattr(cli, "quiet_logs", lambda: logging.getLogger())  # it is for a process of its own

    def run(*argv):
        code = cli.exit_code(lambda: prepare.main(argv))
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def test_resize_and_check(run, photos, tmp_path):
    out = str(tmp_path / "out")
    code, lines, _ = run("resize", f"--path={photos}", "--short=16", f"--out={out}", "--as=small", "--threads=1")
    assert (code, lines[-1]) == (0, f"look it over: python -m lape_jax.prepare check --name=small --path={out}")
    assert Image.open(io.BytesIO(tfds_records("small", out, "val")[0].image)).size == (16, 24)
    code, lines, _ = run("check", "--name=small", f"--path={out}", "--all")
    assert (code, lines[0][:35]) == (0, "train: 1 examples of 1 classes, 0.1")
    assert run("check", "--source=tfds", "--path", out)[1][0] == "small:1.0.0: train 1, val 1; array_record"


def test_scenes_for_the_recipe(run, tmp_path):
    path, out = tmp_path / "ADEChallengeData2016", str(tmp_path / "my out")
    for split in ("training", "validation"):
        for kind, suffix, shape in (("images", "jpg", (3, 3, 3)), ("annotations", "png", (3, 3))):
            (path / kind / split).mkdir(parents=True)
            Image.fromarray(np.full(shape, 2, np.uint8)).save(path / kind / split / f"1.{suffix}")
    (path / "objectInfo150.txt").write_text("Idx Ratio Train Val Name\n1 0.1 9 1 wall\n2 0.1 9 1 floor, flooring\n")
    code, lines, _ = run("scenes", f"--path={path}", "--layout=ade20k", f"--out={out}", "--as=ade20k", "--threads=1")
    config = f"configs/segmenter_ti_mask_ade20k.py:path={out},source=tfds"
    assert (code, lines[-1]) == (0, f"train on it: python -m lape_jax.main --config='{config}' --workdir=DIR")
    data = recipes.segmenter(f"path={out},source=tfds", "segmenter_ti_mask").data
    for split in ("train", "val"):
        source = open_scenes(data, split)
        assert (len(source), source.classes, source[0].first) == (1, ("wall", "floor"), 0)
        assert np.asarray(Image.open(io.BytesIO(source[0].mask))).tolist() == [[1] * 3] * 3


def test_objects(run, tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("train.json", "val.json"):
        samples.write(tmp_path / "set", samples.content(), name)
    out = str(tmp_path / "out")
    code, lines, _ = run("objects", f"--path={tmp_path / 'set'}", f"--out={out}", "--as=mine", "--threads=1")
    train = f"--config=configs/detect.py:path={out} --workdir=DIR --config.data.source=tfds --config.data.name=mine"
    assert (code, lines[0], lines[-1]) == (
        *(0, "all 4 images can be used"),
        f"train on it: python -m lape_jax.main {train}",
    )
    code, lines, _ = run("check", "--name=mine", f"--path={out}", "--all")
    assert (code, lines[-1]) == (0, f"train on it: python -m lape_jax.main {train}")


def test_a_name_that_is_no_text_is_printed_all_the_same(photos, monkeypatch):
    (photos / "train/cat/caf\udce9.jpg").write_bytes(b"")  # as Python calls b"caf\xe9.jpg"
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict, as in most shells
    monkeypatch.setattr("sys.stdout", printed)
    monkeypatch.setattr(cli, "quiet_logs", lambda: None)
    assert cli.exit_code(lambda: prepare.main(["check", f"--path={photos}"])) == 2
    assert b"unreadable: %s/train/cat/caf\\udce9.jpg: it is empty" % bytes(photos) in printed.buffer.getvalue()


def test_arrays_are_pointed_at_when_a_folder_is_looked_for(run, tmp_path):
    (tmp_path / "train.npz").touch()
    code, _, err = run("check", f"--path={tmp_path}")
    assert (code, err.count("\n")) == (2, 1)
    assert err.endswith("found: none (for its .npz files: --source=arrays)\n")


def test_a_home_directory_is_expanded(run, photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert run("check", "--path=~/photos")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["shrink"], "argument COMMAND: invalid choice: 'shrink'"),
        (["check"], "--path=DIR is missing"),
        (
            ["check", "--source=folders"],
            "--source: 'folders' is not one of folder, arrays, tfds, packed (did you mean 'folder'",
        ),
        (["check", "--pth=x"], "unrecognized arguments: --pth=x"),
        (["check", "--path=/nowhere"], "--path=/nowhere is not a directory"),
        (["check", "--path=/", "--threads=0"], "--threads is '0': it must be a whole number, 1 to 1024"),
        (["resize", "--path=/", "--out=/x"], "the following arguments are required: --short"),
        (["resize", "--path=/", "--out=/x", "--short=0"], "--short is '0': it must be a whole number, 8 to 8192"),
        (
            ["resize", "--path=/", "--out=/x", "--short=9", "--quality=100"],
            "--quality is '100': it must be a whole number, 1 to 95",
        ),
        (["scenes", "--path=/", "--out=/x"], "the following arguments are required: --layout"),
        (["scenes", "--path=/", "--layout=folder"], "the following arguments are required: --out"),
        (
            ["scenes", "--path=/", "--layout=folder", "--out=/x", "--short=0"],
            "--short is '0': it must be a whole number, 8 to 8192",
        ),
        (["scenes", "--layout=folder", "--out=/x"], "--path=DIR is missing"),
        (["objects", "--path=/"], "the following arguments are required: --out"),
        (["objects", "--path=/nowhere", "--out=/x"], "--path=/nowhere is not a directory"),
        (["tfds"], "the following arguments are required: NAME"),
        (["tfds", "unknown_set", "--path=/nowhere"], "'unknown_set' "),
        (["cifar", "--path=/nowhere", "--out=/x"], "--path: '/nowhere' cannot be read: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    code, lines, err = run(*arguments)
    assert (code, lines) == (2, [])
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
