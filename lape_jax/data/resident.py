"""A small data set decoded whole, to be put on the device once, so that no step waits for the host."""

from collections.abc import Iterator

import numpy as np

from lape_jax.data import ahead
from lape_jax.data.batches import Batch
from lape_jax.data.corrupt import CorruptImage, CorruptLog
from lape_jax.data.example import Source
from lape_jax.data.order import Share
from lape_jax.data.pipeline import read_eval


def load(
    source: Source,
    *,
    size: int,
    channels: int,
    crop_ratio: float,
    threads: int,
    orientation: str = "stored",
    max_corrupt: int = 0,
) -> Batch:
    """Decodes and centre-crops every example, in order, into one Batch as long as the data set.

    A corrupt image keeps its place, with mask 0, and is logged by name: so indices, and the number of steps in an
    epoch, are those of the data set, as they are in the pipeline.

    Args:
      orientation: view | stored, as for `decode.decode`.
      max_corrupt: how many corrupt images are tolerated; leave it 0 for evaluation.

    Raises:
      UserError: more images than that are corrupt.
    """
    count = len(source)
    data = Batch(
        image=np.zeros((count, size, size, channels), np.uint8),
        label=np.zeros(count, np.int32),
        mask=np.zeros(count, np.float32),
    )

    def read(indices: range) -> list[CorruptImage]:
        errors = []
        for index in indices:
            try:
                if (found := read_eval(source[index], size, channels, crop_ratio, orientation)) is not None:
                    data["image"][index], data["label"][index] = found
                    data["mask"][index] = 1
            except CorruptImage as error:
                errors.append(error)
        return errors

    log = CorruptLog(max_corrupt)
    for errors in ahead.each(read, (range(count)[start : start + 64] for start in range(0, count, 64)), threads):
        for error in errors:
            log.add(error)
    return data


def batches(data: Batch, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up with mask 0. Each process gets its share of a batch.

    Raises:
      UserError: the processes cannot share a batch equally.
    """
    share = Share(process_index, process_count).positions(batch_size)
    for start in range(0, len(data["label"]), batch_size):
        part = slice(start + share.start, start + share.stop)
        arrays = {name: array[part] for name, array in data.items()}
        missing = len(share) - len(arrays["label"])
        yield Batch(**{name: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for name, a in arrays.items()})
