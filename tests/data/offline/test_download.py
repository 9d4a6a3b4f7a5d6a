import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lape_jax.data.offline import download, tfrecord
from lape_jax.errors import UserError


class Builder(SimpleNamespace):
    """Stands in for a builder of TFDS, which would need TensorFlow."""

    name = "pets"
    MANUAL_DOWNLOAD_INSTRUCTIONS = None
    error: Exception | None = None

    def download_and_prepare(self, download_config):
        if self.error:
            raise self.error
        self.config = download_config


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
    with pytest.raises(UserError, match=r"'pets' is not in .*pip install \"lape_jax\[prepare\]\""):
        download.prepare("pets", str(tmp_path / "nothing"))


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
