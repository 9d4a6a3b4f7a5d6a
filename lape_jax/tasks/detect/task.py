"""Detection, as `lape_jax.tasks.task` asks for it: what ties this room together."""

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
from lape_jax.tasks.detect import canvas, check, inputs, loss, pipeline, predict, scores, show, sources, survey
from lape_jax.tasks.detect.evaluate import PhotoEvaluator, detections
from lape_jax.tasks.detect.photo import Photo
from lape_jax.tasks.task import Candidate, Preparation, Task


def _prepare_objects(args: argparse.Namespace, how: How) -> None:
    from lape_jax.tasks.detect import prepare  # here, because it imports TFDS: half a second

    prepare.copy(
        args.path, args.splits, args.out, args.new_name, short=args.short, quality=args.quality,
        orientation=args.orientation, how=how,
    )  # fmt: skip


class Detect(Task):
    """Boxes, classes and masks of the objects in an image; a batch is that of `pipeline.train_batches`."""

    name = "detect"
    answers = "box"
    sources = sources.SOURCES
    sums = loss.SUMS
    score = ("val/box_ap", "box AP")
    panels: ClassVar = {
        "AP, %": {
            "val/box_ap": "boxes",
            "val/mask_ap": "masks",
            "val/ema_box_ap": "boxes (EMA)",
            "val/ema_mask_ap": "masks (EMA)",
        },
    }
    rules = (
        (
            ("detect.canvas",),
            lambda v: len(v) == 2 and rules.whole(v) and min(v) > 0 and not any(side % canvas.STRIDE for side in v),
            f"a pair (height, width) of multiples of {canvas.STRIDE}",
        ),
        (("detect.short",), lambda v: v and rules.whole(v) and min(v) > 0, "a tuple of whole numbers above 0"),
        (
            ("detect.crop_short",),
            lambda v: rules.whole(v) and (not v or min(v) > 0),
            "a tuple of numbers above 0, or ()",
        ),
        (
            ("detect.crop",),
            lambda v: rules.interval(v) and rules.whole(v),
            "a pair (smallest, largest) of whole numbers above 0",
        ),
        (
            ("detect.long", "detect.test_long", "detect.test_short", "detect.max_objects"),
            lambda v: v >= 1,
            "at least 1",
        ),
        (("detect.test_canvases",), lambda v: v >= 0, "at least 1 (0 = as many as there are sizes)"),
        (("detect.shown",), lambda v: 0 <= v <= 1, "from 0 to 1"),
        (("detect.group",), lambda v: v >= 0, "at least 0 (the whole batch)"),
    )
    ignores = ("data.resident", "data.repeats")
    preparations: ClassVar = {"objects": Preparation(_prepare_objects)}
    details = True

    def add_keys(self, config: ConfigDict) -> None:
        # data.path: the directory of annotations/ and images by split (coco), or of what is named here (json)
        config.detect = detect = ConfigDict()  # images and the objects in them
        detect.train_json, detect.val_json = "train.json", "val.json"  # json: COCO's format, paths below data.path
        detect.train_images = detect.val_images = ""  # ... where the images are; "" is where the JSON file is
        detect.masks = True  # learn and evaluate masks, too; False: boxes alone, whether or not there are masks
        detect.canvas = (1024, 1024)  # (height, width) of training images: larger ones are cropped, others filled up
        detect.max_objects = 100  # places in a batch for the objects of an image; of more, so many are drawn
        detect.short = tuple(range(480, 801, 32))  # training: pixels of the shorter side, one of these
        detect.long = 1333  # ... and of the longer, at most
        detect.crop_short = (400, 500, 600)  # half of the images: resized to one of these before; () = none
        detect.crop = (384, 600)  # ... and cropped to sides from this range
        detect.group = loss.GROUP  # images whose losses are normalised together, as on a GPU; 0 = the whole batch
        detect.test_short, detect.test_long = 800, 1333  # evaluation: pixels of both sides, at most
        detect.shown = 0.3  # overlays have what is found with at least this score
        detect.test_canvases = 3  # ... each compiled once; 0 = a canvas for each size, as the reference does it

    def validate(self, config: ConfigDict) -> None:
        if config.data.channels != 3:
            raise UserError(f"config.data.channels is {config.data.channels}: images to detect objects in have 3")

    def open_split(self, config: ConfigDict, split: str) -> Source[Photo]:
        return sources.open_photos(config, split)

    def relabel(self, item: Photo, numbers: Sequence[int]) -> Photo:
        table = np.array([*numbers, -1], np.int32)
        objects = dataclasses.replace(item.objects, labels=table[item.objects.labels])
        return dataclasses.replace(item, objects=objects)

    def recognises(self, data: DataSet) -> bool:
        return check.recognises(data)

    def check_data(
        self, data: DataSet, wanted: str, *, everything: bool, threads: int, say: Callable[[str], None]
    ) -> None:
        check.report(data, wanted, everything=everything, threads=threads, say=say)

    def survey(self, config: ConfigDict, model: Any, train: Source[Photo], val: Source[Photo]) -> list[str]:
        return survey.start(config, train, val)

    def shapes(self, config: ConfigDict, image_shape: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        found = pipeline.fields(config.detect.max_objects)
        return {
            "image": jax.ShapeDtypeStruct((*config.detect.canvas, 3), jnp.uint8),
            **{name: jax.ShapeDtypeStruct(shape, kind) for name, (shape, kind) in found.items()},
            "mask": jax.ShapeDtypeStruct((), jnp.float32),
        }

    def random_batch(self, config: ConfigDict, model: Any, count: int) -> dict[str, np.ndarray]:
        rng, found = np.random.default_rng(0), super().random_batch(config, model, count)
        height, width = config.detect.canvas
        corners = rng.random((count, config.detect.max_objects, 4)) * [width / 2, height / 2, width / 2, height / 2]
        corners[..., 2:] += corners[..., :2] + 1
        found["size"][:] = height, width
        found["boxes"][:] = corners
        found["labels"][:] = rng.integers(0, model.num_classes, found["labels"].shape)
        return found

    def training_batches(
        self, config: ConfigDict, source: Source[Photo], start: int, total: int, share: Share = ALL
    ) -> Batches:
        return pipeline.train_batches(source, config, Reading.of(config, start, total, share))

    def samples(self, config: ConfigDict, source: Source[Photo]) -> Iterator[np.ndarray]:
        return show.middles(config, source)

    def augmentation(self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh) -> Callable[..., dict]:
        return inputs.normalising(config)

    def describe_augmentation(self, config: ConfigDict) -> str:
        return inputs.describe(config)

    def loss(self, config: ConfigDict, model: Any, teacher: Any = None) -> Callable:
        return loss.training_loss(model, config.detect.group, config.detect.masks)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        return loss.training_means(sums)

    def evaluator(
        self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh, source: Source[Photo]
    ) -> PhotoEvaluator:
        return PhotoEvaluator(model, config, mesh, source)

    def inference(self, config: ConfigDict, model: Any) -> Callable[[Any, dict], Any]:
        detect = detections(model, config)
        return lambda variables, batch: detect(
            variables, batch["image"], batch["size"], jnp.ones(batch["size"].shape, jnp.float32)
        )

    def describe(self, results: Mapping[str, float]) -> str:
        parts = [
            f"{kind} AP {results[f'val/{kind}_ap']:.2f}%, AP50 {results[f'val/{kind}_ap50']:.2f}%"
            for kind in scores.KINDS
            if f"val/{kind}_ap" in results
        ]
        if "val/ema_box_ap" in results:
            parts.append(f"EMA box AP {results['val/ema_box_ap']:.2f}%")
        return "  ".join([*parts, f"({results['val/examples']} images)"])

    def sheet(
        self, config: ConfigDict, model: Any, source: Source[Photo], mixing: bool
    ) -> tuple[np.ndarray, list[str]]:
        return show.views(config, source)

    def evaluation_files(
        self, config: ConfigDict, evaluator: PhotoEvaluator, variables: Any, source: Source[Photo], count: int
    ) -> dict[str, bytes]:
        return show.by_class(config, evaluator, source, count)

    def comparison(self, runs: Mapping[str, Candidate], count: int) -> dict[str, bytes]:
        first = next(iter(runs.values()))
        source = self.open_for(first.config, "val", first.classes, "the first run")
        return show.drawn_overlays(runs, source, count)

    def check_places(self, images: Mapping[Path, Path], out: Path) -> None:
        predict.check_places(images, out)

    def predict(self, run: Candidate, images: Mapping[Path, Path], out: Path) -> int:
        return predict.predict(run, images, out)
