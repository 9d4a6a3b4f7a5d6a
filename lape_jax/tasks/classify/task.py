"""Image classification, as `lape_jax.tasks.task` asks for it: what ties this room together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax.augment import augmentation
from lape_jax.augment.canvas import on_canvas
from lape_jax.config import rules
from lape_jax.data import canvas, sources
from lape_jax.data.batches import Batch, Batches
from lape_jax.data.example import Source
from lape_jax.data.order import ALL, Share
from lape_jax.data.packed import PackedSource
from lape_jax.errors import UserError
from lape_jax.interpolation import INTERPOLATIONS
from lape_jax.models.regnet import RegNet
from lape_jax.tasks.classify import distill, inputs, loss, predict, sheet
from lape_jax.tasks.classify.evaluate import Evaluator
from lape_jax.tasks.task import Candidate, Task

SAMPLES = 32  # images at a time for `visualize`


class Classify(Task):
    """A class for each image: "label" is int32 (b,)."""

    name = "classify"
    sources = sources.SOURCES
    sums = loss.SUMS
    score = ("val/top1", "top-1")
    panels: ClassVar = {
        "top-1, %": {"train/top1": "training", "val/top1": "validation", "val/ema_top1": "validation (EMA)"}
    }
    rules = (
        (("data.pad",), lambda v: v >= 0, "at least 0"),
        (("data.side",), lambda v: v >= 1, "at least 1"),
        (("augment.mixup", "augment.cutmix"), lambda v: v >= 0, "at least 0 (0 = off)"),
        (("augment.color_jitter",), lambda v: 0 <= v < 1, "at least 0 (off) and below 1"),
        (("augment.erase_prob", "augment.mix_prob", "augment.mix_switch_prob"), lambda v: 0 <= v <= 1, "from 0 to 1"),
        (("distill.alpha",), lambda v: 0 <= v <= 1, "from 0 to 1"),
        (("loss.label_smoothing",), lambda v: 0 <= v < 1, "at least 0 (off) and below 1"),
        (("data.crop_ratio",), lambda v: 0 < v <= 1, "above 0 and at most 1"),
        (("data.scale",), lambda v: rules.interval(v) and v[1] <= 1, "a pair (smallest, largest) in (0, 1]"),
        (("data.ratio",), rules.interval, "a pair (smallest, largest) of numbers above 0"),
    )
    choices: ClassVar = {"data.interpolation": tuple(INTERPOLATIONS), "augment.order": tuple(augmentation.ERASE_FIRST)}

    def add_keys(self, config: ConfigDict) -> None:
        # data.path: of folder the directory that holds train/ and val/, of arrays that of train.npz and val.npz, of
        # packed the pack
        data = config.data
        data.scale = (0.08, 1.0)  # random-resized crop: range of its area, as a fraction of the image's
        data.ratio = (3 / 4, 4 / 3)  # ... and of its aspect ratio
        data.interpolation = "bicubic"  # of that crop and of the policy's warps: bicubic | bilinear | random
        data.side = canvas.SIDE  # of packed images, as they were packed
        data.pad = 0  # pixels: above 0, a crop of the padded image takes the place of the random-resized crop
        data.crop_ratio = 0.875  # evaluation: centre crop side / resized shorter side

        augment = config.augment  # on the device, after the crop
        augment.policy = "none"  # none | rand-m9-mstd0.5-inc1 (and its like) | cifar10_autoaugment | three_augment
        augment.color_jitter = 0.0  # brightness, contrast and saturation by factors in 1 +- this; 0 = off
        augment.erase_prob = 0.0  # of erasing a random box of an image
        augment.mixup = 0.0  # lambda ~ Beta(mixup, mixup); 0 = off
        augment.cutmix = 0.0  # the same for CutMix
        augment.mix_prob = 1.0  # of mixing a batch
        augment.mix_switch_prob = 0.5  # of CutMix where both are on
        augment.order = "erase_then_mix"  # or "mix_then_erase", with mixing in 8 bits

        config.loss = ConfigDict({"label_smoothing": 0.0})
        config.distill = distill_ = ConfigDict()  # hard distillation, for models with a distillation token
        distill_.teacher = ""  # a file of weights, the workdir of a run, or "labels" to do without
        distill_.model = ""  # name of the teacher's model, for a file of weights
        distill_.alpha = 0.5  # weight of the teacher's labels in the loss

    def validate(self, config: ConfigDict) -> None:
        if on_canvas(config.data) and config.data.channels != canvas.CHANNELS:
            raise UserError(f"config.data.channels is {config.data.channels}, but packed images have {canvas.CHANNELS}")
        augmentation.check(config)

    def check(self, config: ConfigDict, model: Any) -> None:
        if isinstance(model, RegNet):
            raise UserError(
                f"{config.model.name} is here to teach (config.distill.model) and to be evaluated, not trained"
            )
        if getattr(model, "pool", None) == "none":
            raise UserError(
                "config.model.pool='none' gives each patch logits of its own, and images have one label each"
            )

    def teacher(self, config: ConfigDict, model: Any, classes: Sequence[str]) -> Path | tuple[Any, dict] | None:
        return distill.teacher(config, model, classes)

    def open_split(self, config: ConfigDict, split: str) -> Source:
        return sources.open_split(config.data, split)

    def open_alone(self, config: ConfigDict, split: str, learned: Sequence[str]) -> Source:
        return sources.open_alone(config.data, split, learned)

    def renumbered(self, source: Source, learned: Sequence[str], numbers: Sequence[int]) -> Source:
        if isinstance(source, PackedSource):
            return source.relabelled(learned, numbers)
        return super().renumbered(source, learned, numbers)

    def survey(self, config: ConfigDict, model: Any, train: Source, val: Source) -> list[str]:
        return inputs.survey(config, train)

    def host_shapes(
        self, config: ConfigDict, shapes: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        fields = canvas.fields(config.data.side).items() if on_canvas(config.data) else ()
        return shapes | {name: jax.ShapeDtypeStruct(shape, kind) for name, (shape, kind) in fields}

    def training_batches(
        self, config: ConfigDict, source: Source, start: int, total: int, share: Share = ALL
    ) -> Batches:
        return inputs.training_batches(config, source, start, total, share)

    def resident(self, config: ConfigDict, source: Source) -> Batch | None:
        return inputs.training_set(config, source) if config.data.resident else None

    def samples(self, config: ConfigDict, source: Source) -> Iterator[np.ndarray]:
        return (images for images, _ in self.examples(config, source))

    def examples(self, config: ConfigDict, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batches = inputs.cropped_batches(config, source)(min(SAMPLES, len(source)), 0, 1)
        kept = ((batch, batch["mask"] > 0) for batch in batches)
        return ((batch["image"][real], batch["label"][real]) for batch, real in kept)

    def augmentation(self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh) -> Callable[..., dict]:
        return augmentation.make(config, num_classes=model.num_classes, mesh=mesh)

    def describe_augmentation(self, config: ConfigDict) -> str:
        return augmentation.describe(config)

    def introduction(self, config: ConfigDict) -> list[str]:
        taught = f"teacher: {config.distill.teacher} (weight {config.distill.alpha:g})"
        return super().introduction(config) + ([taught] if config.distill.teacher else [])

    def loss(self, config: ConfigDict, model: Any, teacher: Any = None) -> Callable:
        if teacher is not None:
            return distill.training_loss(model, teacher, config.distill.alpha)
        return loss.training_loss(model)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        return loss.training_means(sums)

    def evaluator(self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh, source: Source) -> Evaluator:
        batches = inputs.evaluation_batches(config, source)
        shapes = self.host_shapes(config, self.shapes(config, model.input_shape))
        return Evaluator(model, config, mesh, batches, len(source), shapes)

    def inference(self, config: ConfigDict, model: Any) -> Callable[[Any, dict], Any]:
        return loss.evaluation_sums(model, config)

    def describe(self, results: Mapping[str, float]) -> str:
        return loss.describe(results)

    def sheet(self, config: ConfigDict, model: Any, source: Source, mixing: bool) -> tuple[np.ndarray, list[str]]:
        return sheet.augmented(config, model, source, mixing)

    def predict(self, run: Candidate, images: Mapping[Path, Path], out: Path) -> int:
        return predict.predict(run, images, out)
