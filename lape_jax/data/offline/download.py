"""What TFDS must do once: download a data set and write it as array_record. TFDS needs TensorFlow for that."""

import contextlib
import importlib.util
import os
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from lape_jax.data import records
from lape_jax.data.offline import tfrecord
from lape_jax.errors import UserError

IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
# The modules that TFDS imports to prepare but does not ask for, and what people call them: the extra `prepare`.
NEEDED = {"tensorflow": "TensorFlow", "importlib_resources": "importlib_resources"}


def prepare(name: str, data_dir: str, manual_dir: str = "", say: Callable[[str], None] = print) -> None:
    """Makes data_dir/NAME[/CONFIG]/VERSION with files of array_record, unless it is there.

    One that is there in tfrecord is converted. TFDS removes what it has half done when it is started again.

    Args:
      name: "NAME" or "NAME/CONFIG", either with ":VERSION".
      data_dir: "" is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      manual_dir: where files lie that must be downloaded by hand; by default data_dir/downloads/manual.

    Raises:
      UserError: TensorFlow, the data set or such files are missing, a host cannot be reached, or TFDS fails otherwise.
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
    if missing := [title for module, title in NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise UserError(
            f"{name!r} is not in {data_dir}, and to prepare it TFDS needs {' and '.join(missing)} (to read it, it does "
            'not): pip install "lape_jax[prepare]", or -e ".[prepare]" where lape_jax was installed with -e'
        )
    manual = Path(manual_dir or os.path.join(data_dir, "downloads", "manual")).expanduser()
    with _failures_of_tfds(name):
        builder = tfds.builder(name, data_dir=data_dir, file_format=records.ARRAY_RECORD)
    _check_manual(builder.name, builder.MANUAL_DOWNLOAD_INSTRUCTIONS, manual)
    # TFDS takes a file whose name and checksum it knows from there as well, whoever downloaded it.
    by_hand = {url: manual / known.filename for url, known in (builder.url_infos or {}).items() if known.filename}
    with _failures_of_tfds(name, by_hand):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(manual)))


@contextlib.contextmanager
def _failures_of_tfds(name: str, by_hand: Mapping[str, Path] | None = None) -> Iterator[None]:
    """Whatever the many libraries that download, unpack and write raise, as UserError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"TFDS cannot prepare {name!r}: {_what_happened(error, by_hand or {})}") from error


def _what_happened(error: Exception, by_hand: Mapping[str, Path]) -> str:
    """One line. Where a download failed: of which URL, why, and where a copy of the file may lie."""
    is_ftp = isinstance(error, urllib.error.URLError)
    if not is_ftp and not hasattr(error, "request"):  # as errors of the library `requests` have
        return records.first_line(error).rstrip(":")
    cause = _innermost(error)
    reason = getattr(cause, "strerror", None) or records.first_line(cause)
    if is_ftp or error.request is None:
        return f"a download failed ({reason})"
    url = error.request.url
    # The system's errors below those of `requests`: no such name, no route, refused, timed out, no valid certificate.
    unreached = cause is not error and isinstance(cause, OSError)
    host = f": {urllib.parse.urlsplit(url).hostname} cannot be reached" if unreached else ""
    copy = f"; a copy of the file may be laid at {by_hand[url]}" if url in by_hand else ""
    return f"{url} cannot be downloaded{host} ({reason}){copy}"


def _innermost(error: BaseException) -> BaseException:
    """What first went wrong; libraries hand it on as a cause, a context or an argument."""
    arguments = [argument for argument in error.args if isinstance(argument, BaseException)]
    inner = error.__cause__ or error.__context__ or (arguments[-1] if arguments else None)
    return _innermost(inner) if inner else error


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
