"""What TFDS must do once: download a data set and write it as array_record. TFDS needs TensorFlow for that."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from lape_jax.data import records
from lape_jax.data.offline import tfrecord
from lape_jax.errors import UserError

IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def prepare(name: str, data_dir: str, manual_dir: str = "", say: Callable[[str], None] = print) -> None:
    """Makes data_dir/NAME[/CONFIG]/VERSION with files of array_record, unless it is there.

    One that is there in tfrecord is converted. TFDS removes what it has half done when it is started again.

    Args:
      name: "NAME" or "NAME/CONFIG", either with ":VERSION".
      data_dir: "" is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      manual_dir: where files lie that must be downloaded by hand; by default data_dir/downloads/manual.

    Raises:
      UserError: TensorFlow, the data set or such files are missing, or TFDS fails.
    """
    data_dir = records.default_dir(data_dir)
    plain, _, version = name.partition(":")
    found = records.prepared(data_dir) if os.path.isdir(data_dir) else {}
    if plain in found and (not version or version in found[plain]):
        builder = records.find(name, data_dir)
        formats = {form.value for form in builder.info.available_file_formats()}
        if records.ARRAY_RECORD in formats:
            say(f"{builder.data_path} is there already, as array_record")
        elif "tfrecord" in formats:
            tfrecord.convert(builder, say)
        else:
            raise UserError(
                f"{builder.data_path} is stored as {', '.join(formats)}, and only tfrecord can be converted"
            )
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{name!r} is not in {data_dir}, and to prepare it TFDS needs TensorFlow (to read it, it does not): pip "
            'install "lape_jax[prepare]", or -e ".[prepare]" where lape_jax was installed with -e'
        )
    manual = Path(manual_dir or os.path.join(data_dir, "downloads", "manual")).expanduser()
    with _failures_of_tfds(name):
        builder = tfds.builder(name, data_dir=data_dir, file_format=records.ARRAY_RECORD)
    _check_manual(builder.name, builder.MANUAL_DOWNLOAD_INSTRUCTIONS, manual)
    with _failures_of_tfds(name):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(manual)))


@contextlib.contextmanager
def _failures_of_tfds(name: str) -> Iterator[None]:
    """Whatever the many libraries that download, unpack and write raise, as UserError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"TFDS cannot prepare {name!r}: {records.first_line(error)}") from error


def _check_manual(name: str, instructions: str | None, manual: Path) -> None:
    """Raises UserError, with TFDS's instructions, where files are missing that only a person can get."""
    if not instructions:
        return
    if name == "imagenet2012":
        missing = [file for file in IMAGENET if not (manual / file).is_file()]
    else:
        missing = [] if manual.is_dir() and any(manual.iterdir()) else ["the files"]
    if missing:
        raise UserError(
            f"{name} must be downloaded by hand: {' and '.join(missing)} must be in {manual} (or in another directory, "
            f"given as --manual=DIR); TFDS says: {instructions}"
        )
