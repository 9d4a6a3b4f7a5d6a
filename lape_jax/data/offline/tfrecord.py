"""A TFDS data set in tfrecord, made readable at random: its records are copied to array_record, beside the old files.

The records are the same in both formats, so neither TensorFlow nor the originals of the images are needed.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from lape_jax import atomic
from lape_jax.data.offline import tfds_files
from lape_jax.errors import UserError

INFO = "dataset_info.json"


def convert(builder: tfds.core.DatasetBuilder, say: Callable[[str], None] = print) -> None:
    """Adds array_record to the formats of a data set, which is in tfrecord.

    Files that are there already are kept, and the description is changed last: when killed, do it again.

    Raises:
      UserError: a file is missing or damaged, or has another number of records than the description says.
    """
    path = Path(builder.data_path) / INFO
    try:
        for split, split_info in builder.info.splits.items():
            for source, count in zip(split_info.filepaths, split_info.shard_lengths, strict=True):
                target = Path(source).with_name(Path(source).name.replace(".tfrecord", ".array_record"))
                if not target.exists():
                    tfds_files.write_shard(target, read(Path(source), count))
            say(f"{split}: {split_info.num_examples:,} records in {split_info.num_shards:,} files of array_record")
        info = json.loads(path.read_text(encoding="utf-8"))
        info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), "array_record"]
        atomic.write(path, json.dumps(info, indent=2))
    except OSError as error:
        raise UserError(f"{error.filename or path.parent}: {error.strerror or error}") from error


def read(path: Path, count: int) -> Iterator[bytes]:
    """The `count` records of a tfrecord file: each after its length (8 bytes) and a checksum (4), before another (4).

    The checksums (CRC-32C) are not looked at.

    Raises:
      UserError: the file ends in the middle of a record, or has another number of them.
    """
    found = 0
    try:
        opened = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    with opened as file:
        limit = os.fstat(file.fileno()).st_size
        while head := file.read(12):
            size = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else limit
            data = file.read(size + 4) if size < limit else b""
            if len(data) < size + 4:
                raise UserError(f"{path} is truncated or damaged after {found} records")
            found += 1
            yield data[:-4]
    if found != count:
        raise UserError(f"{path} has {found} records, but its description says {count}")
