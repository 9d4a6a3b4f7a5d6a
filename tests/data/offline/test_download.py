import fnmatch
import importlib.util
import re
import tomllib
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from urllib3.util.retry import Retry

from lape_jax.data.offline import download, tfrecord
from lape_jax.errors import UserError


class Builder(SimpleNamespace):
    """Stands in for a builder of TFDS, which would need TensorFlow."""

    name = "pets"
    MANUAL_DOWNLOAD_INSTRUCTIONS = None
    url_infos = None
    error: Exception | None = None
    url = ""

    def download_and_prepare(self, download_config):
        if self.error:
            raise self.error
        if self.url:
            fetch(self.url)
        self.config = download_config


def fetch(url):
    """Downloads as TFDS does it, but tries less often."""
    if url.startswith("ftp"):
        urllib.request.urlopen(url)
    retries = Retry(total=1, backoff_factor=0.01, status_forcelist=[503])
    with requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
        with session.get(url, stream=True) as response:
            list(response.iter_content(8))


class Unwilling(BaseHTTPRequestHandler):
    """Answers /503 with 503, breaks off in the middle of /part, and else at once."""

    def do_GET(self):
        if self.path == "/503":
            self.send_error(503)
        elif self.path == "/part":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(bytes(10))

    def log_message(self, *args):
        pass


@pytest.fixture
def tensorflow(monkeypatch):
    """tensorflow(builder): makes believe that TensorFlow is there, and TFDS's builder this one."""

    def make(builder):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
        monkeypatch.setattr(
            tfds, "builder", lambda *args, **kwargs: vars(builder).update(args=args, kwargs=kwargs) or builder
        )
        return builder

    return make


def test_without_tensorflow_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"'pets' is not in .* needs TensorFlow and importlib_resources .*pip install \"lape_jax\[prepare\]\""
    with pytest.raises(UserError, match=message):
        download.prepare("pets", str(tmp_path / "nothing"))


def test_what_tfds_does_not_ask_for_is_asked_for(tmp_path, monkeypatch):
    """TFDS 4.9.10 imports it on every Python."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "importlib_resources" else True)
    with pytest.raises(UserError, match=r"TFDS needs importlib_resources \(to read it, it does not\)"):
        download.prepare("pets", str(tmp_path / "nothing"))
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[^\w]", line)[0] for line in project["optional-dependencies"]["prepare"]}
    assert extra == set(download.NEEDED)  # by name of package: tensorflow-cpu is TensorFlow, too


def test_tfds_is_asked_for_array_record(tmp_path, tensorflow):
    builder = tensorflow(Builder())
    download.prepare("pets/small:1.0.0", str(tmp_path))
    assert builder.args == ("pets/small:1.0.0",)
    assert builder.kwargs == {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert builder.config.manual_dir == str(tmp_path / "downloads/manual")


def test_what_fails_in_tfds_is_one_line(tmp_path, tensorflow):
    tensorflow(Builder(error=OSError("no route to host\nand more")))
    with pytest.raises(UserError, match=r"^TFDS cannot prepare 'pets': no route to host$"):
        download.prepare("pets", str(tmp_path))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://nowhere.invalid/pets.zip", "{url} cannot be downloaded: nowhere.invalid cannot be reached (*)"),
        ("http://127.0.0.1:1/pets.zip", "{url} cannot be downloaded: 127.0.0.1 cannot be reached (Connection refused)"),
        ("{host}/503", "{url} cannot be downloaded (too many 503 error responses)"),
        ("{host}/", "{url} cannot be downloaded: 127.0.0.1 cannot be reached (Remote end closed connection *)"),
        ("{host}/part", "a download failed (IncompleteRead(10 bytes read, 90 more expected))"),
        ("ftp://nowhere.invalid/pets.zip", "a download failed (*)"),
    ],
)
def test_what_fails_in_a_download_is_one_line(tmp_path, tensorflow, serve, url, message):
    url = url.format(host=serve(Unwilling))
    tensorflow(Builder(url=url, url_infos={"http://other/": SimpleNamespace(filename="other.zip")}))
    with pytest.raises(UserError) as raised:
        download.prepare("pets", str(tmp_path))
    assert "\n" not in str(raised.value)
    assert fnmatch.fnmatchcase(str(raised.value), f"TFDS cannot prepare 'pets': {message.format(url=url)}")


def test_where_a_copy_may_lie_is_said(tmp_path, tensorflow):
    url = "http://nowhere.invalid/pets.zip?raw=1"
    tensorflow(Builder(url=url, url_infos={url: SimpleNamespace(filename="pets.zip")}))
    with pytest.raises(UserError, match=rf"; a copy of the file may be laid at {tmp_path}/hand/pets\.zip$"):
        download.prepare("pets", str(tmp_path), str(tmp_path / "hand"))


def test_imagenet_must_be_downloaded_by_hand(tmp_path, tensorflow):
    builder = tensorflow(Builder(name="imagenet2012", MANUAL_DOWNLOAD_INSTRUCTIONS="register at\n   image-net.org"))
    message = r"ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar must be in {}/downloads/manual.*--manual.*image-net"
    with pytest.raises(UserError, match=f"(?s){message.format(tmp_path)}"):
        download.prepare("imagenet2012", str(tmp_path))
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand/ILSVRC2012_img_train.tar").touch()
    with pytest.raises(UserError, match=r"by hand: ILSVRC2012_img_val.tar must be in .*/hand "):
        download.prepare("imagenet2012", str(tmp_path), str(tmp_path / "hand"))
    (tmp_path / "hand/ILSVRC2012_img_val.tar").touch()
    download.prepare("imagenet2012", str(tmp_path), str(tmp_path / "hand"))
    assert builder.config.manual_dir == str(tmp_path / "hand")


def test_other_files_by_hand(tmp_path, tensorflow):
    tensorflow(Builder(MANUAL_DOWNLOAD_INSTRUCTIONS="ask the authors"))
    with pytest.raises(UserError, match=r"(?s)pets must be downloaded by hand: the files must be in .*ask the authors"):
        download.prepare("pets", str(tmp_path))
    (tmp_path / "downloads/manual").mkdir(parents=True)
    (tmp_path / "downloads/manual/pets.zip").touch()
    download.prepare("pets", str(tmp_path))


def test_what_is_there_is_kept_or_converted(tmp_path, write_tfds, encode, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    examples = {"train": [(encode(np.zeros((1, 1, 3), np.uint8)), 0)]}
    write_tfds(tmp_path / "pets/1.0.0", examples)
    write_tfds(tmp_path / "old/1.0.0", examples, form="tfrecord")
    write_tfds(tmp_path / "strange/1.0.0", examples, form="riegeli")
    lines, converted = [], []
    download.prepare("pets", str(tmp_path), say=lines.append)
    assert lines == [f"{tmp_path}/pets/1.0.0 is there already, as array_record"]
    monkeypatch.setattr(tfrecord, "convert", lambda builder, say: converted.append(builder.name))
    download.prepare("old:1.0.0", str(tmp_path))
    assert converted == ["old"]
    with pytest.raises(UserError, match=r"strange/1\.0\.0 is stored as riegeli, and only tfrecord can be converted"):
        download.prepare("strange", str(tmp_path))
    with pytest.raises(UserError, match=r"'pets:2\.0\.0' is not in .* TensorFlow"):
        download.prepare("pets:2.0.0", str(tmp_path))
