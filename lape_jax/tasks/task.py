"""What a task answers. The loop, the commands, the report and the benchmarks ask it, and know no task by name."""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax.augment.photometric import normalise
from lape_jax.config.rules import Rule
from lape_jax.data import labels
from lape_jax.data.example import Source
from lape_jax.data.offline.parts import How
from lape_jax.data.offline.splits import DataSet
from lape_jax.data.order import ALL, Share
from lape_jax.errors import UserError

_log = logging.getLogger(__name__)

SHEET = 32  # most images of a sheet
OVERLAYS = 8  # validation images that are drawn, unless so many are asked for


class Candidate(NamedTuple):
    """Trained weights: the config, the model, its variables on the host, and the names of the classes it knows."""

    config: ConfigDict
    model: Any
    variables: dict
    classes: Sequence[str]


class Preparation(NamedTuple):
    """A command `python -m lape_jax.prepare NAME`, which writes a copy: what it does, and options of its own."""

    run: Callable[[argparse.Namespace, How], None]
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


class Spread:
    """`count` examples of a source at equal distances: the data sets lie there class by class."""

    def __init__(self, source: Source, count: int):
        self.source, self.count, self.classes = source, min(count, len(source)), source.classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.source[index * len(self.source) // self.count]


class Task:
    """A task, as one object without a state of its own: the base class of all, with answers that suit many.

    A batch is a dict of arrays with the images' axis first: "image", uint8 (b, h, w, c); "mask", float32 (b,), 1 for
    examples that count and 0 for those that only fill a place; and what is to be learned.

    Attributes:
        name: `config.task`.
        answers: what the task's models give an answer to each of, see `answers` of the models: "image", "pixel", "box".
        sources: `config.data.source` -> the key of `config.data` that it cannot do without, "" if there is none.
        sums: names of what the loss adds up, "loss" and "examples" among them.
        score: the metric that runs are compared by, the larger the better: its name, and what a reader calls it.
        panels: of the report's curves: title -> {metric: what it is called}.
        rules, choices: what values the task's keys may have, see `lape_jax.config.rules.check`.
        ignores: keys of all tasks that mean nothing to this one.
        preparations: what the task adds to `python -m lape_jax.prepare`, by name.
        details: whether `evaluate --out` has something to write.
    """

    name: ClassVar[str]
    answers: ClassVar[str] = "image"
    sources: ClassVar[Mapping[str, str]]
    sums: ClassVar[tuple[str, ...]] = ("loss", "examples")
    score: ClassVar[tuple[str, str]]
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    rules: ClassVar[Sequence[Rule]] = ()
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    ignores: ClassVar[tuple[str, ...]] = ()
    preparations: ClassVar[Mapping[str, Preparation]] = {}
    details: ClassVar[bool] = False

    # ---- Config and model -------------------------------------------------------------------------------------------

    def add_keys(self, config: ConfigDict) -> None:
        """Adds the task's keys, with defaults, to those of all tasks. Asked whenever a config is made."""

    def validate(self, config: ConfigDict) -> None:
        """Raises UserError where keys contradict each other. Asked at the start of commands, for runs of this task."""

    def check_answers(self, config: ConfigDict, model: Any) -> None:
        """Raises UserError unless the model, or its class, answers what this task asks."""
        if model.answers != self.answers:
            what = "nothing" if model.answers == "nothing" else f"each {model.answers}"
            raise UserError(f"config.task is {config.task!r}, but {config.model.name} gives a class to {what}")

    def check(self, config: ConfigDict, model: Any) -> None:
        """Raises UserError, saying why, if the model cannot learn this. Asked before training."""

    def teacher(self, config: ConfigDict, model: Any, classes: Sequence[str]) -> Path | tuple[Any, dict] | None:
        """Who teaches: the workdir of a run, or a model and its variables on the host; None if nobody does.

        Asked before training. Raises UserError if the model cannot have this teacher, or not do without one.
        """
        return None

    # ---- Data -------------------------------------------------------------------------------------------------------

    def open_split(self, config: ConfigDict, split: str) -> Any:
        """The examples of "train" or "val": len, [index], and `classes`, the names. Asked by whoever needs data.

        Raises UserError if they are missing or not laid out as they should be.
        """
        raise NotImplementedError

    def open_alone(self, config: ConfigDict, split: str, learned: Sequence[str]) -> Any:
        """The same without the other split, for whoever knows from elsewhere which classes were learned."""
        return self.open_split(config, split)

    def relabel(self, item: Any, numbers: Sequence[int]) -> Any:
        """An item of a source, whose classes get other numbers, negative ones for none. Asked by `open_for`."""
        return dataclasses.replace(item, label=numbers[item.label])

    def renumbered(self, source: Any, learned: Sequence[str], numbers: Sequence[int]) -> Any:
        """The examples under the names `learned`, their classes under other numbers. Asked by `open_for`."""
        return labels.Relabelled(source, learned, lambda item: self.relabel(item, numbers))

    def open_for(self, config: ConfigDict, split: str, learned: Sequence[str], what: str) -> Any:
        """The examples of a split under the numbers and names that `what` has learned. Asked by commands on weights.

        Classes are matched as `config.data.match` says; what is to be known of it is logged.

        Raises UserError if they cannot be matched, or as `open_split`.
        """
        source = self.open_alone(config, split, learned)
        found = labels.match(learned, source.classes, config.data.match, what=what, where=f"the {split} data")
        if found.said:
            _log.warning("%s", found.said)
        if tuple(source.classes) == tuple(learned):
            return source
        return self.renumbered(source, learned, found.numbers)

    def recognises(self, data: DataSet) -> bool:
        """Whether a data set on disk is laid out for this task in particular. Asked by `prepare check`."""
        return False

    def check_data(
        self, data: DataSet, wanted: str, *, everything: bool, threads: int, say: Callable[[str], None]
    ) -> None:
        """Looks over a data set that the task recognises, see `lape_jax.data.offline.check.report`, which does others.

        Raises UserError if something in it cannot be used. Asked by `prepare check`.
        """
        raise NotImplementedError

    def survey(self, config: ConfigDict, model: Any, train: Any, val: Any) -> list[str]:
        """What a look at some examples shows that its owner may not know, in lines: EXIF orientations, say.

        Asked by the loop at the start of a run, while the first batch is made.
        """
        return []

    def shapes(self, config: ConfigDict, image_shape: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of everything in a batch, of one image. Asked for what takes a batch's place.

        Args:
            image_shape: the shape of the images that the model is made for, which may be trained on others.
        """
        return {
            "image": jax.ShapeDtypeStruct(image_shape, jnp.uint8),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
            "mask": jax.ShapeDtypeStruct((), jnp.float32),
        }

    def host_shapes(
        self, config: ConfigDict, shapes: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """`shapes`, but of batches as the host makes them, whose images the device may have to crop. Asked likewise."""
        return shapes

    def random_batch(self, config: ConfigDict, model: Any, count: int) -> dict[str, np.ndarray]:
        """So many random examples, of no meaning. Asked by what measures a step."""
        rng = np.random.default_rng(0)
        most = {"image": 256, "label": model.num_classes}
        shapes = self.host_shapes(config, self.shapes(config, model.input_shape))
        return {
            name: rng.integers(0, most[name], (count, *row.shape), row.dtype)
            if name in most
            else np.ones((count, *row.shape), row.dtype)
            for name, row in shapes.items()
        }

    def training_batches(
        self, config: ConfigDict, source: Any, start: int, total: int, share: Share = ALL
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of the batches of the steps start..total-1, with a `close` method.

        Asked by the loop unless there is a `resident` set. A batch is a function of (seed, step) alone.
        """
        raise NotImplementedError

    def resident(self, config: ConfigDict, source: Any) -> dict[str, np.ndarray] | None:
        """The whole training set as one batch, to live on the devices; None to stream batches. Asked by the loop."""
        return None

    def samples(self, config: ConfigDict, source: Any) -> Iterator[np.ndarray]:
        """All images of a source as the model sees them, uint8 (n, h, w, c), n as suits. Asked by `visualize`."""
        raise UserError(f"task {self.name!r} shows no validation images (--images=0 does without)")

    def examples(self, config: ConfigDict, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same images, and what they are of, int32 (n,). Asked by `probe`."""
        raise UserError(f"task {self.name!r} has no single class for an image, which a probe needs")

    # ---- Training ---------------------------------------------------------------------------------------------------

    def augmentation(self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh) -> Callable[..., dict]:
        """The function (batch, key, mixing) -> batch on the device, from pixels to what the loss takes.

        `mixing` is false in the steps after config.mix_*. Asked by the loop and by benchmarks.
        """
        raise NotImplementedError

    def describe_augmentation(self, config: ConfigDict) -> str:
        """What the augmentation does, in a line. Asked for the log and the report."""
        return "none"

    def introduction(self, config: ConfigDict) -> list[str]:
        """What a run says of itself at its start, beside model and optimiser, in lines. Asked by the loop."""
        return [f"augmentation: {self.describe_augmentation(config)}"]

    def loss(self, config: ConfigDict, model: Any, teacher: Any = None) -> Callable:
        """The function (params, collections, batch, key) -> (summed loss, (sums, collections)), to be differentiated.

        The gradient is divided by the sum "examples". With a teacher, a model, its variables are a fifth argument.
        Asked by the loop and by benchmarks.
        """
        raise NotImplementedError

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """{"train/" + metric: value} of the steps that `sums` cover. Asked at every log line."""
        return {"train/loss": sums["loss"] / max(sums["examples"], 1.0)}

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    def evaluator(self, config: ConfigDict, model: Any, mesh: jax.sharding.Mesh, source: Any) -> Callable[..., dict]:
        """The function (variables, prefix="val/") -> {prefix + metric: value} over all examples of `source`, once each.

        Asked by the loop and by `evaluate`.
        """
        raise NotImplementedError

    def inference(self, config: ConfigDict, model: Any) -> Callable[[Any, dict], Any]:
        """The function (variables, batch) -> results whose cost `overhead` measures."""

        def logits(variables: Any, batch: dict) -> Any:
            return model.apply(variables, normalise(batch["image"], config.data.mean, config.data.std), train=False)[0]

        return logits

    def describe(self, results: Mapping[str, float]) -> str:
        """An evaluation in a line. Asked by the loop."""
        name, shown = self.score
        return f"{shown} {results[name]:.2f}%"

    # ---- To look at -------------------------------------------------------------------------------------------------

    def sheet(self, config: ConfigDict, model: Any, source: Any, mixing: bool) -> tuple[np.ndarray, list[str]] | None:
        """At most SHEET training images at step 0, floats in [0, 1] (n, h, w, c), and titles. Asked by the report."""
        return None

    def evaluation_files(
        self, config: ConfigDict, evaluator: Any, variables: Any, source: Any, count: int
    ) -> dict[str, bytes]:
        """Files by name, of the evaluation that was made last, with `count` examples. Asked by `evaluate --out`."""
        return {}

    def comparison(self, runs: Mapping[str, Candidate], count: int) -> dict[str, bytes]:
        """Files by name: `count` validation images beside what the runs, by title, make of them.

        Asked by `visualize`. Raises UserError if the runs have seen other images.
        """
        return {}

    def check_places(self, images: Mapping[Path, Path], out: Path) -> None:
        """Raises UserError if `predict` would write a file twice, or over one that may be the user's. Asked first."""

    def predict(self, run: Candidate, images: Mapping[Path, Path], out: Path) -> int:
        """Writes what `run` makes of images to `out`, and returns how many could be read. Asked by `predict`.

        Args:
            images: files -> what to call them below `out`.
        """
        raise UserError(f"task {self.name!r} cannot predict files")
