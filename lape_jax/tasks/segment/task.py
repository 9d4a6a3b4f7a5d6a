"""Semantic segmentation, as `lape_jax.tasks.task` asks for it: what ties this room together."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax.config import rules
from lape_jax.data.batches import Batches, Reading
from lape_jax.data.example import Source
from lape_jax.data.offline.parts import How
from lape_jax.data.offline.splits import DataSet
from lape_jax.data.order import ALL, Share
from lape_jax.errors import UserError
from lape_jax.tasks.segment import check, inputs, limits, loss, pipeline, predict, show, sources, survey
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.tasks.segment.scene import Scene
from lape_jax.tasks.task import Candidate, Preparation, Task


def _scenes_options(parser: argparse.ArgumentParser) -> None:
    layouts = " | ".join(sources.LAYOUTS)
    parser.add_argument("--layout", required=True, metavar="LAYOUT", help=f"how DIR is laid out: {layouts}")


def _prepare_scenes(args: argparse.Namespace, how: How) -> None:
    from lape_jax.tasks.segment import prepare  # here, because it imports TFDS: half a second

    prepare.copy(
        args.path, args.layout, args.splits, args.out, args.new_name, short=args.short, quality=args.quality,
        orientation=args.orientation, how=how,
    )  # fmt: skip


class Segment(Task):
    """A class for each pixel: "label" is int32 (b, h, w), negative where there is none."""

    name = "segment"
    answers = "pixel"
    sources = sources.SOURCES
    sums = loss.SUMS
    score = ("val/miou", "mIoU")
    panels: ClassVar = {
        "mIoU, %": {"val/miou": "validation", "val/ema_miou": "validation (EMA)"},
        "pixel accuracy, %": {"train/pixel_accuracy": "training", "val/pixel_accuracy": "validation"},
    }
    rules = (
        (
            ("segment.scale",),
            lambda v: rules.interval(v[::-1]) and rules.whole(v),
            "a pair (longer, shorter) of whole numbers above 0",
        ),
        (("segment.scale_range",), rules.interval, "a pair (smallest, largest) of numbers above 0"),
        (("segment.scales",), lambda v: v and rules.numbers(v) and min(v) > 0, "a tuple of numbers above 0"),
        (("segment.max_class",), lambda v: 0 < v <= 1, "above 0 and at most 1 (off)"),
        (("segment.stride",), lambda v: v >= 1, "at least 1"),
        (("segment.multiple",), lambda v: v >= 0, "at least 1, or 0 (off)"),
    )
    choices: ClassVar = {"segment.mean_over": loss.MEANS}
    ignores = ("data.resident", "data.repeats")
    preparations: ClassVar = {"scenes": Preparation(_prepare_scenes, _scenes_options)}
    details = True

    def add_keys(self, config: ConfigDict) -> None:
        # data.path: of folder the directory that holds images/, masks/ and classes.txt, of ade20k images/, annotations/
        config.segment = segment = ConfigDict()  # images and their maps of labels
        segment.scale = (2048, 512)  # pixels: an image is resized until its longer and shorter side fit in
        segment.scale_range = (0.5, 2.0)  # training: both times a factor from this range
        segment.max_class = 0.75  # training crops are drawn anew (10 times) while one class covers more than this
        segment.distort = True  # brightness, contrast, saturation and hue, each with probability 1/2
        segment.mean_over = "valid"  # the loss is the mean over pixels with a label, or over "all", others counting 0
        segment.stride = 480  # evaluation: pixels from one window to the next
        # ... sides are enlarged to multiples of this, and one shorter than a window is taken whole; or if it is 0, an
        # image keeps its proportions, and one that is smaller than a window is enlarged until that fits in
        segment.multiple = 0
        segment.scales = (1.0,)  # ... factors of `scale`, whose probabilities are averaged
        segment.flip = False  # ... each also mirrored

    def validate(self, config: ConfigDict) -> None:
        if config.segment.stride > config.data.image_size:
            raise UserError(
                f"config.segment.stride is {config.segment.stride}, more than the window, config.data.image_size = "
                f"{config.data.image_size}: pixels between the windows would be left out"
            )
        if config.data.channels != 3:
            raise UserError(f"config.data.channels is {config.data.channels}: images to segment have 3")

    def check(self, config: ConfigDict, model: Any) -> None:
        images = config.batch_size // config.optimizer.accumulate
        if images < model.least_batch:
            raise UserError(
                f"config.batch_size / config.optimizer.accumulate is {images}, but {config.model.name} needs at least "
                f"{model.least_batch} images at a time in training, as its coarsest map has one pixel"
            )

    def open_split(self, config: ConfigDict, split: str) -> Source[Scene]:
        return sources.open_scenes(config.data, split)

    def relabel(self, item: Scene, numbers: Sequence[int]) -> Scene:
        return dataclasses.replace(item, numbers=tuple(numbers))

    def recognises(self, data: DataSet) -> bool:
        return check.recognises(data)

    def check_data(
        self, data: DataSet, wanted: str, *, everything: bool, threads: int, say: Callable[[str], None]
    ) -> None:
        check.report(data, wanted, everything=everything, threads=threads, say=say)

    def survey(self, config: ConfigDict, model: Any, train: Source[Scene], val: Source[Scene]) -> list[str]:
        bounds = limits.of(config, max(model.grid_of((1, *model.input_shape))), model.num_classes)
        return survey.start(train, val, config.data.orientation, bounds, config.data.threads)

    def shapes(self, config: ConfigDict, image_shape: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return super().shapes(config, image_shape) | {"label": jax.ShapeDtypeStruct(image_shape[:2], jnp.int32)}

    def training_batches(
        self, config: ConfigDict, source: Source[Scene], start: int, total: int, share: Share = ALL
    ) -> Batches:
        return pipeline.train_scene_batches(source, Reading.of(config, start, total, share), inputs.crop(config))

    def samples(self, config: ConfigDict, source: Source[Scene]) -> Iterator[np.ndarray]:
        return show.windows(config, source)

    def augmentation(self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh) -> Callable[..., dict]:
        return inputs.normalising(config)

    def describe_augmentation(self, config: ConfigDict) -> str:
        return inputs.describe(config)

    def loss(self, config: ConfigDict, model: Any, teacher: Any = None) -> Callable:
        return loss.training_loss(model, config.segment.mean_over)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        return loss.training_means(sums)

    def evaluator(
        self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh, source: Source[Scene]
    ) -> SceneEvaluator:
        return SceneEvaluator(model, config, mesh, source)

    def inference(self, config: ConfigDict, model: Any) -> Callable[[Any, dict], Any]:
        logits = loss.patch_logits(model, config)
        return lambda variables, batch: logits(variables, batch["image"])

    def describe(self, results: Mapping[str, float]) -> str:
        return loss.describe(results)

    def sheet(
        self, config: ConfigDict, model: Any, source: Source[Scene], mixing: bool
    ) -> tuple[np.ndarray, list[str]]:
        return show.crops(config, source)

    def evaluation_files(
        self, config: ConfigDict, evaluator: SceneEvaluator, variables: Any, source: Source[Scene], count: int
    ) -> dict[str, bytes]:
        return show.by_class(config, evaluator, variables, source, count)

    def comparison(self, runs: Mapping[str, Candidate], count: int) -> dict[str, bytes]:
        first = next(iter(runs.values()))
        source = self.open_for(first.config, "val", first.classes, "the first run")
        return show.drawn_overlays(runs, source, count)

    def check_places(self, images: Mapping[Path, Path], out: Path) -> None:
        predict.check_places(images, out)

    def predict(self, run: Candidate, images: Mapping[Path, Path], out: Path) -> int:
        return predict.predict(run, images, out)
