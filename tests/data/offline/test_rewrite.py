import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.offline import parts, rewrite, tfds_files
from lape_jax.data.records import prepared, tfds_records
from lape_jax.data.sources import folder
from lape_jax.errors import UserError


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write(path, out, *, transform=lambda data, name: data, max_corrupt=0, say=lambda line: None, **options):
    splits = {split: folder(str(path), split) for split in ("train", "val")}
    form = rewrite.Records(
        Path(out),
        "copy",
        "a copy",
        lambda example: dataclasses.replace(example, image=transform(example.image, example.name)),
        shard_size=2,
    )
    return rewrite.write(form, splits, options, parts.How(2, max_corrupt, say))


def content(directory):
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


class Killed(BaseException):
    """Passes every `except Exception`, as a kill would."""


class Killer:
    """Wraps functions that change the disk, and raises Killed before or after the n-th call of any of them."""

    def __init__(self, monkeypatch, moment):
        self.moment, self.calls = moment, 0
        for module, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree"), (tfds_files, "ArrayRecordWriter")):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.tick()
            result = function(*args, **kwargs)
            self.tick()
            return result

        return wrapped

    def tick(self):
        self.calls += 1
        if self.calls == self.moment:
            raise Killed


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(photos, tmp_path):
    path = photos(train=5, val=2)  # in four shards
    whole = content(write(path, tmp_path / "whole").parent)
    assert len(whole) == 4 + 4
    moment, made = 0, set()
    while True:
        moment += 1
        out = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, moment)
            try:
                write(path, out)
                break
            except Killed:
                pass
        try:
            there = "1.0.0" in prepared(str(out)).get("copy", [])
        except UserError:
            there = False  # nothing at all
        done = out / "copy" / "1.0.0"
        assert there == done.exists()
        assert not there or content(done) == {name.removeprefix("1.0.0/"): data for name, data in whole.items()}
        lines = []
        write(path, out, say=lines.append)
        made.add(next((line for line in lines if " images in " in line), "whole").partition(" images in ")[0])
        assert content(out / "copy") == whole
    assert moment > 30
    assert made == {"7", "6", "4", "2", "0", "whole"}  # images that were left to be made


def test_killed_twice_it_goes_on_too(photos, tmp_path):
    path = photos(train=5, val=2)
    whole = content(write(path, tmp_path / "whole"))
    for moments in ((5, 5), (9, 2), (30, 1), (12, 12)):
        out = tmp_path / "{}_{}".format(*moments)
        for moment in moments:
            with pytest.MonkeyPatch.context() as patch:
                Killer(patch, moment)
                with pytest.raises(Killed):
                    write(path, out)
        assert content(write(path, out)) == whole


PROGRAM = """
import os, signal, sys
from pathlib import Path
from lape_jax.data.offline import parts, rewrite
from lape_jax.data.sources import folder

def transform(example):
    if example.name.endswith(sys.argv[3]):
        assert "tensorflow" not in sys.modules
        os.kill(os.getpid(), signal.SIGKILL)
    return example

splits = {split: folder(sys.argv[1], split) for split in ("train", "val")}
form = rewrite.Records(Path(sys.argv[2]), "copy", "a copy", transform, shard_size=2)
rewrite.write(form, splits, {}, parts.How(2))
"""


def test_a_real_kill(photos, tmp_path):
    path = photos(train=5, val=2)
    whole = content(write(path, tmp_path / "whole"))
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "out"), "train/b/03.jpeg"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [entry.name for entry in (tmp_path / "out/copy").iterdir()] == ["1.0.0.incomplete"]
    lines = []
    assert content(write(path, tmp_path / "out", say=lines.append)) == whole
    assert lines[2].startswith("4 images in ")
    assert lines[2].endswith("; 3 were there already")  # of shards of 1, 2, 2 (where it was killed) and 2


def test_a_shard_that_was_lost_is_made_again(photos, tmp_path):
    path = photos(train=5, val=2)
    whole = content(write(path, tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_files, "write_description", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(path, tmp_path / "out")
    next((tmp_path / "out/copy/1.0.0.incomplete/set").glob("*-train*00001-of-00003")).unlink()
    lines = []
    assert content(write(path, tmp_path / "out", say=lines.append)) == whole
    assert lines[2].endswith("; 5 were there already")


def test_a_finished_copy_is_left_alone(photos, tmp_path):
    path = photos(train=5, val=2)
    done = write(path, tmp_path / "out", short=8)
    times = {file: file.stat().st_mtime_ns for file in done.iterdir()}
    lines = []
    write(path, tmp_path / "out", short=8, say=lines.append)
    assert lines == [f"{done} is there already, whole"]
    assert {file: file.stat().st_mtime_ns for file in done.iterdir()} == times


def test_other_options_or_sources_do_not_mix(photos, tmp_path):
    path = photos(train=5, val=2)

    def interrupted(data, name):
        if name.endswith("03.jpeg"):
            raise Killed
        return data

    with pytest.raises(Killed):
        write(path, tmp_path / "half", transform=interrupted, short=8)
    write(path, tmp_path / "whole", short=8)
    for out, directory in (("half", "1.0.0.incomplete"), ("whole", "1.0.0")):
        with pytest.raises(UserError, match=rf"copy/{directory} was written with other options \(short was 8 and is 9"):
            write(path, tmp_path / out, short=9)
    photos(train=6, val=2)
    for out in ("half", "whole"):
        with pytest.raises(UserError, match=r"its source had other splits, classes or files"):
            write(path, tmp_path / out, short=8)
    (tmp_path / "foreign/copy/1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"copy/1\.0\.0 holds another data set: choose another --as or --out"):
        write(path, tmp_path / "foreign")


def test_images_that_cannot_be_read_are_left_out_up_to_a_limit(photos, tmp_path, caplog):
    path = photos(train=6, val=2)

    def transform(data, name):
        if name.endswith(("00.jpeg", "03.jpeg")):
            raise CorruptImage(name, "no reason")
        return data

    bad = [str(path / name) for name in ("train/a/00.jpeg", "train/b/03.jpeg", "val/a/00.jpeg")]
    with pytest.raises(
        UserError, match=rf"more than 2 images \(--max-corrupt\) cannot be read, .*{bad[2]} \(no reason"
    ):
        write(path, tmp_path / "out", transform=transform, max_corrupt=2)
    assert bad[2] in caplog.messages[2]
    lines = []
    done = write(path, tmp_path / "out", transform=transform, max_corrupt=3, say=lines.append)
    assert "train: 4 images" in lines[0]
    assert lines[0].endswith("2 left out")
    assert content(done) == content(write(path, tmp_path / "at_once", transform=transform, max_corrupt=3))
    source = tfds_records("copy", str(tmp_path / "out"), "train")
    names = [source.records[index]["file_name"].decode() for index in range(4)]
    assert names == ["a/02.jpeg", "a/04.jpeg", "b/01.jpeg", "b/05.jpeg"]
    assert '"left_out"' in (done / "options.json").read_text()
    assert bad[0] in (done / "options.json").read_text()
    assert "a copy; 3 that cannot be read are left out." in (done / "dataset_info.json").read_text()


def test_a_part_without_readable_images_is_refused(photos, tmp_path):
    def transform(data, name):
        raise CorruptImage(name, "no reason")

    with pytest.raises(UserError, match="none of the images 0 to 1 of split 'train' can be read"):
        write(photos(train=4, val=1), tmp_path / "out", transform=transform, max_corrupt=9)


def test_two_processes_do_not_write_the_same_copy(photos, tmp_path):
    (tmp_path / "out/copy").mkdir(parents=True)
    handle = os.open(tmp_path / "out/copy", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"another process is writing to .*out/copy: wait for it"):
        write(photos(train=1, val=1), tmp_path / "out")
    os.close(handle)
    write(photos(train=1, val=1), tmp_path / "out")


def test_a_disk_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/copy/1.0.0 cannot be written: Not a directory"):
        write(photos(train=1, val=1), tmp_path / "file")
    real = tfds_files.ArrayRecordWriter
    monkeypatch.setattr(tfds_files, "ArrayRecordWriter", lambda path, options: real("/dev/full", options))
    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device"):
        write(photos(train=1, val=1), tmp_path / "out")
    monkeypatch.setattr(tfds_files, "ArrayRecordWriter", lambda path, options: Lossy(real(path, options)))
    with pytest.raises(UserError, match=r"holds 0 records after 1 were written to it"):
        write(photos(train=1, val=1), tmp_path / "out")


class Lossy:
    def __init__(self, writer):
        self.close = writer.close

    def write(self, data):
        pass


@pytest.mark.parametrize("name", [" cat", "cat\ndog", "caf\udce9"])
def test_class_names_that_the_files_cannot_hold(name):
    with pytest.raises(UserError, match=r"the class name .* cannot be stored"):
        tfds_files.check_classes(["a", name])


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(7, 3, [2, 2, 3]), (6, 3, [3, 3]), (1, 3, [1]), (4097, 4096, [2048, 2049])]
)
def test_shards_are_equally_long(count, size, lengths):
    ranges = parts.cut(count, size)
    assert [len(part) for part in ranges] == lengths
    assert [index for part in ranges for index in part] == list(range(count))
