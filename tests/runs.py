"""Runs of configs/digits.py that are small enough for tests, and what they leave."""

import contextlib
import functools
import json
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from PIL import Image

from lape_jax import cli
from lape_jax.data import sources
from lape_jax.parallel import sharding
from lape_jax.train import chrono
from lape_jax.train.loop import train_and_evaluate

ROOT = Path(__file__).parents[1]
DIGITS = f"{ROOT / 'configs' / 'digits.py'}:debug"
# Two epochs in which the tiny model begins to learn. Tests that ask for the same run share its compiled programs.
LEARNING = {
    "total_epochs": 2,
    "optimizer.lr": 1e-2,
    "optimizer.clip_norm": 1.0,
    "loss.label_smoothing": 0,
    "ema_decay": 0.9,
}
TIMES = {"img_per_sec", "img_per_sec_per_device", "data_wait_frac", "mfu"}


def load(file=DIGITS, **overrides):
    """The config, with `overrides` by dotted key (`**{"optimizer.lr": 1}`); without a report, which takes seconds."""
    overrides = {"report": False} | overrides
    return cli.load_config(str(file), "", [(key, str(value)) for key, value in overrides.items()])


def options(command, files=(), **given):
    """The options of a command (its module) as its own parser reads them; `given` are texts by name."""
    argv = [f"--{name}={value}" for name, value in given.items()]
    args, _ = cli.parse([*argv, *map(str, files)], "", (), command.options)
    args.overrides = {}
    return args


@contextlib.contextmanager
def on(devices):
    """Lets commands, which take all devices, have the first so many of the eight virtual ones, and be quick."""
    make_mesh = sharding.make_mesh
    with (
        quickly(),
        mock.patch.object(
            sharding, "make_mesh", lambda sizes, given=None: make_mesh(sizes, given or jax.devices()[:devices])
        ),
    ):
        yield


def quickly():
    """Saves a quarter of a second in which the peak of the devices would be measured."""
    return mock.patch.object(chrono, "peak_flops", return_value=1e12)


def train(workdir, config, devices=1):
    """Trains; returns the results and the lines of metrics.jsonl."""
    with quickly():
        return train_and_evaluate(config, workdir, jax.devices()[:devices]), metrics(workdir)


@functools.cache
def finished(directory):
    """The workdir of a LEARNING run, made once for all tests: to be copied before anything in it is changed."""
    train(directory / "finished", load(**LEARNING))
    return directory / "finished"


def metrics(workdir):
    """The lines of metrics.jsonl, without the scalars that measure time."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def losses(lines):
    """Every loss (train, val, EMA) in the lines of metrics.jsonl, in order."""
    return [value for line in lines for name, value in line.items() if name.endswith("loss")]


def copy(workdir, to):
    """A copy of a finished run's workdir that may be changed."""
    return shutil.copytree(workdir, to / "run")


def write_png_folder(root, each=None):
    """The digits as PNG files by class below root/train and root/val: all of them, or `each` of every class."""
    for split in ("train", "val"):
        source = sources.digits(split)
        written = dict.fromkeys(source.classes, 0)
        for index in range(len(source)):
            example = source[index]
            name = source.classes[example.label]
            if each is not None and written[name] == each:
                continue
            written[name] += 1
            write_png(Path(root) / split / name / f"{index:04}.png", example.image)
    return Path(root)


def write_png(path, pixels):
    """A grey image, uint8 (h, w, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)[..., 0]).save(path)
