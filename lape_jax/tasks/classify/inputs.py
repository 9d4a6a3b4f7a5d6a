"""What a run of this task reads: batches to train on, a resident set, batches to evaluate."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from lape_jax.data import pipeline, resident
from lape_jax.data.batches import Batch
from lape_jax.data.example import Source


def host_crop(config: ConfigDict) -> dict[str, Any]:
    """How training images are cropped before they go to the device: not at all, if it is drawn there."""
    data = config.data
    whole = data.pad > 0 or data.resident
    return {
        "size": data.image_size,
        "scale": (1.0, 1.0) if whole else data.scale,
        "ratio": (1.0, 1.0) if whole else data.ratio,
        "interpolation": data.interpolation,
        "orientation": data.orientation,
    }


def training_set(config: ConfigDict, source: Source) -> Batch:
    """All of a resident training set, as whole images: crops are drawn on the device."""
    data = config.data
    return resident.load(
        source,
        size=data.image_size,
        channels=data.channels,
        crop_ratio=1.0,
        threads=data.threads,
        orientation=data.orientation,
        max_corrupt=data.max_corrupt,
    )


def evaluation_batches(config: ConfigDict, source: Source) -> Callable[[int, int, int], Iterable[Batch]]:
    """The function (batch size, i, n) -> the i-th of n equal parts of every batch of an evaluation over `source`.

    A resident data set is decoded once, on the first call.
    """
    crop = {
        "size": config.data.image_size,
        "channels": config.data.channels,
        "crop_ratio": config.data.crop_ratio,
        "threads": config.data.threads,
        "orientation": config.data.orientation,
    }
    if not config.data.resident:
        return lambda batch_size, i, n: pipeline.eval_batches(
            source, batch_size=batch_size, process_index=i, process_count=n, **crop
        )
    load = functools.cache(lambda: resident.load(source, **crop))
    return lambda batch_size, i, n: resident.batches(load(), batch_size, i, n)
