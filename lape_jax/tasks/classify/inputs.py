"""What a run of this task reads: batches to train on, a resident set, batches to evaluate."""

import functools
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from lape_jax.augment.canvas import on_canvas
from lape_jax.data import canvas, pipeline, resident
from lape_jax.data import survey as data_survey
from lape_jax.data.batches import Batch, Batches, Reading
from lape_jax.data.example import Source
from lape_jax.data.order import Share
from lape_jax.data.packed import PackedSource


def training_batches(config: ConfigDict, source: Source, start: int, total: int, share: Share) -> Batches:
    """A process's share of the batches of the steps start..total-1: cropped, or on canvases."""
    reading = Reading.of(config, start, total, share)
    if on_canvas(config.data):
        return canvas.train_batches(source, reading)
    return pipeline.train_batches(source, reading, host_crop(config))


def survey(config: ConfigDict, source: Source) -> list[str]:
    """What is to be said of a training set when a run starts."""
    if not isinstance(source, PackedSource):
        return data_survey.start(source, config.data.orientation, config.data.threads)
    if not source.turned:
        return []
    followed = "was followed" if source.orientation == "view" else "was not followed"
    return [f"{source.turned:,} images of the pack carried an EXIF orientation, which {followed} when it was written"]


def host_crop(config: ConfigDict) -> pipeline.Crop:
    """How training images are cropped before they go to the device: not at all, if it is drawn there."""
    data = config.data
    scale, ratio = ((1.0, 1.0), (1.0, 1.0)) if data.pad > 0 or data.resident else (data.scale, data.ratio)
    return pipeline.Crop(data.image_size, data.channels, scale, ratio, data.interpolation, data.orientation)


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

    A resident data set is decoded once, on the first call; images of a pack are on canvases.
    """
    if on_canvas(config.data):
        return lambda batch_size, i, n: canvas.eval_batches(
            source, batch_size=batch_size, threads=config.data.threads, process_index=i, process_count=n
        )
    return cropped_batches(config, source)


def cropped_batches(config: ConfigDict, source: Source) -> Callable[[int, int, int], Iterable[Batch]]:
    """The same with images as the model sees them, whatever the source."""
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
