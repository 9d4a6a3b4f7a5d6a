"""TFDS itself, with TensorFlow: its cifar10, from a small archive of the official form to array_record and to training.

In processes of their own: the command that prepares, and one that trains and could not import TensorFlow.
"""

import functools
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from http.server import SimpleHTTPRequestHandler

import numpy as np
import pytest
from PIL import Image

from lape_jax.data.offline import cifar, download
from lape_jax.data.records import tfds_records
from tests import runs

ABSENT = [title for module, title in download.NEEDED.items() if importlib.util.find_spec(module) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"{' and '.join(ABSENT)} not installed (extra `prepare`)"),
]
NAME = "cifar-10-binary.tar.gz"

# `python -m lape_jax.prepare`, where TFDS's cifar10 lies at another address, has another checksum, and is tried twice.
PREPARE = """
import runpy, sys
from tensorflow_datasets.core.download import checksums, downloader
from tensorflow_datasets.image_classification.cifar import Cifar10

url, size, checksum, name, *arguments = sys.argv[1:]
official = Cifar10._cifar_info.fget
Cifar10._cifar_info = property(lambda self: official(self)._replace(url=url))
Cifar10.url_infos = {url: checksums.UrlInfo(int(size), checksum, name)}
downloader.MAX_RETRIES = 1
sys.argv[1:] = arguments
runpy.run_module("lape_jax.prepare", run_name="__main__", alter_sys=True)
"""
# `python -m lape_jax.main`, where TensorFlow is not to be found.
TRAIN = """
import runpy
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] == "tensorflow" else find(name, *rest)
runpy.run_module("lape_jax.main", run_name="__main__", alter_sys=True)
"""
TINY = ("total_steps=2", "batch_size=8", "eval_batch_size=4", "model.width=16", "model.depth=2", "model.heads=2")


@pytest.fixture
def archive(tmp_path):
    """CIFAR-10's binary version, with four images in each of its files."""
    rng = np.random.default_rng(0)
    files = {"batches.meta.txt": "".join(f"class{number}\n" for number in range(10)).encode()}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels, pixels = rng.integers(0, 10, (4, 1), np.uint8), rng.integers(0, 256, (4, 3072), np.uint8)
        files[f"{name}.bin"] = np.hstack([labels, pixels]).tobytes()
    (tmp_path / "served").mkdir()
    with tarfile.open(tmp_path / "served" / NAME, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return tmp_path / "served" / NAME


def python(program, *arguments):
    """Exit code, stdout and the lines of stderr of a program of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=1800)
    return done.returncode, done.stdout, done.stderr.splitlines()


def prepare(archive, host, data_dir, *options):
    content = archive.read_bytes()
    known = (len(content), hashlib.sha256(content).hexdigest(), NAME)
    return python(PREPARE, f"{host}/{NAME}", *known, "tfds", "cifar10", f"--path={data_dir}", *options)


def rows(examples):
    """Label and pixels of each example, sorted: TFDS shuffles what it writes."""
    return sorted((label, np.asarray(pixels).tobytes()) for label, pixels in examples)


def test_from_a_host_to_training_without_tensorflow(tmp_path, archive, serve):
    host = serve(functools.partial(SimpleHTTPRequestHandler, directory=archive.parent))
    code, out, err = prepare(archive, host, tmp_path / "data")
    assert code == 0, err
    check = f"look it over: python -m lape_jax.prepare check --name=cifar10 --path={tmp_path}/data"
    assert out.splitlines()[-1] == check

    cifar.convert(str(archive), tmp_path / "arrays")
    for ours, theirs in (("train", "train"), ("val", "test")):
        arrays = np.load(tmp_path / "arrays" / f"{ours}.npz")
        source = tfds_records("cifar10", str(tmp_path / "data"), theirs)
        examples = [source[index] for index in range(len(source))]
        assert source.classes == tuple(f"class{number}" for number in range(10))
        assert rows((example.label, Image.open(io.BytesIO(example.image))) for example in examples) == rows(
            zip(arrays["label"].tolist(), arrays["image"], strict=True)
        )

    config = f"--config=configs/vit_lite_cifar10.py:path={tmp_path}/data"
    code, out, err = python(TRAIN, config, f"--workdir={tmp_path}/run", *(f"--config.{setting}" for setting in TINY))
    assert code == 0, err
    lines = runs.metrics(tmp_path / "run")
    assert lines[-1]["step"] == 2
    assert np.isfinite(runs.losses(lines)).all()
    assert "done: 2 steps" in out


def test_from_a_copy_where_the_host_is_out_of_reach(tmp_path, archive):
    host, data = "http://127.0.0.1:1", tmp_path / "my data"
    code, _, err = prepare(archive, host, data)
    assert (code, err[-1]) == (
        2,
        f"error: TFDS cannot prepare 'cifar10': {host}/{NAME} cannot be downloaded: 127.0.0.1 cannot be reached "
        f"(Connection refused); a copy of the file may be laid at {data}/downloads/manual/{NAME}",
    )
    (data / "downloads/manual").mkdir()
    (data / "downloads/manual" / NAME).write_bytes(b"something else")
    code, _, err = prepare(archive, host, data)
    assert code == 2, err
    assert err[-1].endswith(f"downloaded to {data}/downloads/manual/{NAME}, has wrong checksum")
    (data / "downloads/manual" / NAME).write_bytes(archive.read_bytes())
    code, _, err = prepare(archive, host, data)
    assert code == 0, err
    assert len(tfds_records("cifar10", str(data), "train")) == 20
