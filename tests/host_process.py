"""One of the two processes that tests/test_hosts.py starts: python -m tests.host_process TASK DIRECTORY

Which one it is stands in the environment. It writes what happened to DIRECTORY/happened_INDEX.json.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax import cli
from lape_jax.data import pipeline, resident
from lape_jax.errors import UserError
from lape_jax.parallel import hosts, sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify.evaluate import Evaluator
from lape_jax.tasks.config import base
from lape_jax.tasks.detect.evaluate import PhotoEvaluator
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.tasks.segment.scene import Scene
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.writers import Writers
from tests import runs
from tests.tasks.detect import seer

SECOND = os.environ.get("JAX_PROCESS_ID") == "1"


def every_size(strategies):
    """The same with tiny parameters split, too."""
    return tuple((name, strategy.replace("fsdp", "fsdp(1)")) for name, strategy in strategies)


# Everything random takes part. Twelve steps, and after each six a log line, an evaluation and a checkpoint.
RUN = {
    "total_steps": 12,
    "warmup_steps": 2,
    "log_steps": 6,
    "eval_steps": 6,
    "checkpoint_steps": 6,
    "model.dropout": 0.1,
    "model.attn_dropout": 0.1,
    "model.drop_path": 0.2,
    "optimizer.lr": 1e-2,
    "optimizer.layer_decay": 0.8,
    "ema_decay": 0.9,
}
MESHES = {
    "1": {},
    "8": {},
    "4x2": {"mesh.data": 4, "mesh.fsdp": 2, "sharding": every_size(sharding.FSDP)},
    "2x2x2": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "sharding": every_size(sharding.TENSOR)},
}
# Cheaper ones, where only their end matters.
SMALL = RUN | {"model.depth": 1, "model.drop_path": 0.0, "batch_size": 8, "ema_decay": 0.0, "eval_batch_size": 128}
SHORT = SMALL | {"total_steps": 8, "log_steps": 4, "eval_steps": 8, "checkpoint_steps": 100, "data.resident": False}
ENDLESS = SMALL | {"total_steps": 10**6, "log_steps": 5, "eval_steps": 10**6, "checkpoint_steps": 10**6}
# A run of a detector.
DETECTOR = {
    "total_steps": 4,
    "batch_size": 8,
    "log_percent": 50,
    "eval_percent": 100,
    "checkpoint_percent": 100,
    "model.drop_path": 0.2,
    "optimizer.lr": 1e-3,
    "ema_decay": 0.9,
}


def detector() -> ConfigDict:
    return runs.load(f"{runs.ROOT}/configs/mask_rcnn_vit_adapter_ti_coco.py:debug", **DETECTOR)


class Data(list):
    """Examples that nobody reads, of classes that matter."""

    def __init__(self, count, *classes):
        super().__init__(range(count))
        self.classes = classes


class Linear:
    """A model without hidden layers."""

    input_shape = (2, 2, 1)

    def apply(self, variables, images, *, train):
        return images.reshape(images.shape[0], -1) @ variables["params"]["kernel"], {}


def main(task: str, directory: Path) -> None:
    hosts.HEARTBEAT, workdirs.SECONDS = 20, 1
    config = runs.load(**RUN, seed=1 if SECOND and task == "misfits" else 0)
    with hosts.together(config, cli.report, connect=3 if task == "alone" else 120):
        if task == "fails" and SECOND:
            raise UserError("a mistake of one process")
        hosts.gather("")  # as any other collective operation
        if task in SCENES:
            happened = {scene.__name__: told(scene, directory / scene.__name__) for scene in SCENES[task]}
            (directory / f"happened_{jax.process_index()}.json").write_text(json.dumps(happened))
            hosts.gather("")
            if SECOND:
                os.kill(os.getpid(), signal.SIGKILL)
            hosts.gather("")


def told(scene, workdir: Path):
    """What a scene returned, or how it ended, and the steps that it saved."""
    try:
        returned = scene(workdir)
    except (UserError, KeyboardInterrupt) as error:
        returned = f"{type(error).__name__}: {error}"
    hosts.gather("")
    return returned, Checkpoints(workdir, read_only=True).steps()


def train(workdir: Path, config: dict) -> None:
    with runs.quickly():
        runs.train_and_evaluate(runs.load(**config), workdir, jax.devices()[:8])


def one_each():
    """One device of each process."""
    return [next(d for d in jax.devices() if d.process_index == index) for index in (0, 1)]


def train_small(workdir: Path, config: ConfigDict) -> None:
    with runs.quickly():
        runs.train_and_evaluate(config, workdir, one_each())


# ---- Scenes ----------------------------------------------------------------------------------------------------------


def starts(workdir):
    train(workdir, RUN | MESHES["8"] | {"data.resident": False})  # in the other runs it is


def goes_on(workdir):  # with what one process saved, but for its damaged last checkpoint
    train(workdir, RUN | MESHES["2x2x2"])


def claimed(workdir):  # by the test
    with workdirs.claim(workdir):
        pass


def not_shared(workdir):
    with workdirs.claim(workdir / str(jax.process_index())):
        pass


def other_data(workdir):
    workdirs.compare_data(workdir, Data(10 + SECOND, "cat"), Data(4, "cat"))


def evaluates(workdir):
    return evaluator(lambda size, i, n: resident.batches(IMAGES, size, i, n))(VARIABLES)


def unreadable_evaluation(workdir):
    def batches(size, i, n):
        yield from itertools.islice(resident.batches(IMAGES, size, i, n), 1)
        if SECOND:
            raise UserError("the disk is gone")
        yield from itertools.islice(resident.batches(IMAGES, size, i, n), 1, None)

    evaluator(batches)(VARIABLES)


def evaluator(batches):
    mesh = sharding.make_mesh(SimpleNamespace(data=2, fsdp=1, tensor=1), one_each())
    config = SimpleNamespace(eval_batch_size=4, data=SimpleNamespace(mean=(0.25,), std=(0.5,)))
    return Evaluator(Linear(), config, mesh, batches, len(IMAGES["label"]), TASKS["classify"].shapes(base(), (2, 2, 1)))


rng = np.random.default_rng(1)
VARIABLES = {"params": {"kernel": rng.standard_normal((4, 7)).astype(np.float32)}}
IMAGES = {
    "image": rng.integers(0, 256, (13, 2, 2, 1), np.uint8),
    "label": rng.integers(0, 7, 13).astype(np.int32),
    "mask": np.ones(13, np.float32),
}


def segments(workdir):
    segmenting = scene_evaluator(Scenes(SCENES_OF_PIXELS), sharding.make_mesh(TWO, one_each()))
    return segmenting(VARIABLES_OF_PATCHES), segmenting.matrix.tolist()


def unreadable_scene(workdir):  # of the second process
    scenes = Scenes(SCENES_OF_PIXELS)
    if SECOND:
        scenes[1] = Scene(b"", scenes[1].mask, "the second scene")
    scene_evaluator(scenes, sharding.make_mesh(TWO, one_each()))(VARIABLES_OF_PATCHES)


def detects(workdir):
    detecting = PhotoEvaluator(seer.Seer(), seer.config(), sharding.make_mesh(TWO, one_each()), seer.photos())
    results = detecting({"params": np.float32(1)})
    said = [(*one[:4], one.mask["counts"].decode()) for one in detecting.detections]
    return {name: value for name, value in results.items() if value == value}, said


def scene_evaluator(scenes, mesh):
    data = SimpleNamespace(image_size=4, channels=1, mean=(0.25,), std=(0.5,), threads=1, orientation="stored")
    segment = SimpleNamespace(scale=(20, 6), stride=3, scales=(1.0,), flip=True, multiple=0)
    return SceneEvaluator(Patches(), SimpleNamespace(eval_batch_size=4, data=data, segment=segment), mesh, scenes)


class Scenes(list):
    classes = ("a", "b", "c")


class Patches:
    """A model that segments by the means of patches."""

    num_classes, input_shape = 3, (4, 4, 1)

    def grid_of(self, shape):
        return 2, 2

    def apply(self, variables, images, *, train):
        patches = images.reshape(-1, 2, 2, 2, 2).mean(axis=(2, 4))
        return None, {"masks": patches[..., None] * variables["params"]["kernel"] + variables["params"]["bias"]}


TWO = SimpleNamespace(data=2, fsdp=1, tensor=1)
VARIABLES_OF_PATCHES = {"params": {"kernel": np.float32([-1, 0, 1]), "bias": np.float32([0, 0.3, 0])}}
SCENES_OF_PIXELS = [
    Scene(rng.integers(0, 256, (*size, 1), np.uint8), rng.integers(0, 3, size, np.uint8), f"scene {size}")
    for size in [(5, 9), (7, 4), (6, 6)]
]


def unreadable(workdir):
    class Breaking:
        """The batches of the second process, of which the seventh cannot be read."""

        def __init__(self, *args, **kwargs):
            self.batches, self.left = train_batches(*args, **kwargs), 6

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise UserError("the disk is gone")
            return next(self.batches)

        def close(self):
            self.batches.close()

    train_batches = pipeline.train_batches
    with mock.patch.object(pipeline, "train_batches", Breaking if SECOND else train_batches):
        train_small(workdir, runs.load(**SHORT))


def interrupted(workdir):
    """By a Ctrl-C at the second process, when it is asked for its first line of metrics."""
    signals = [signal.SIGINT] if SECOND else []

    def write(*_):
        if signals:
            signal.raise_signal(signals.pop())

    with mock.patch.object(Writers, "write", write):
        train_small(workdir, runs.load(**ENDLESS))


def learns_photos(workdir):
    train_small(workdir, detector())


EVALUATIONS = (claimed, not_shared, other_data, evaluates, unreadable_evaluation, segments, unreadable_scene, detects)
SCENES = {
    "evaluations": EVALUATIONS,
    "plays": (starts, goes_on, unreadable, interrupted),
    "learns_photos": (learns_photos,),
}

if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1], Path(sys.argv[2]))))
