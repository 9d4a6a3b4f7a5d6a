"""Evaluation against NumPy on a linear model: every example once, whatever devices and batches divide."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lape_jax.data import resident
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify.evaluate import Evaluator
from lape_jax.tasks.config import base

EXAMPLES, CLASSES = 13, 7
SHAPES = TASKS["classify"].shapes(base(), (1, 1, 1))  # of blank rows, which one process does not need
rng = np.random.default_rng(1)
DATA = {
    "image": rng.integers(0, 256, (EXAMPLES, 2, 2, 1), np.uint8),
    "label": rng.integers(0, CLASSES, EXAMPLES).astype(np.int32),
    "mask": np.ones(EXAMPLES, np.float32),
}
KERNEL = rng.standard_normal((4, CLASSES)).astype(np.float32)
VARIABLES = {"params": {"kernel": KERNEL}}
CONFIG = SimpleNamespace(eval_batch_size=5, data=SimpleNamespace(mean=(0.25,), std=(0.5,)))


class Linear:
    def apply(self, variables, images, *, train):
        assert not train
        return images.reshape(images.shape[0], -1) @ variables["params"]["kernel"], {}


def in_numpy(data, kernel):
    logits = ((data["image"].reshape(-1, 4) / 255 - 0.25) / 0.5) @ kernel.astype(np.float64)
    rank = (-logits).argsort(axis=1, kind="stable").argsort(axis=1)[np.arange(len(logits)), data["label"]]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), data["label"]]
    counted = data["mask"] > 0
    return {
        "val/top1": 100 * (rank < 1)[counted].mean(),
        "val/top5": 100 * (rank < 5)[counted].mean(),
        "val/loss": losses[counted].mean(),
        "val/examples": counted.sum(),
    }


def mesh_of(devices):
    return sharding.make_mesh(SimpleNamespace(data=devices, fsdp=1, tensor=1), jax.devices()[:devices])


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 5), (3, 6), (8, 8)])
def test_every_example_counts_once(devices, batch_size):
    asked = []

    def batches(*part):
        asked.append(part)
        return resident.batches(DATA, *part)

    evaluator = Evaluator(Linear(), CONFIG, mesh_of(devices), batches, EXAMPLES, SHAPES)
    expected = in_numpy(DATA, KERNEL)
    assert 0 < expected["val/top1"] < expected["val/top5"] < 100  # else the comparison says little
    found = evaluator(VARIABLES)
    assert found == pytest.approx(expected, rel=1e-6)
    assert evaluator(VARIABLES) == found  # and once more at the next evaluation
    assert asked == [(batch_size, 0, 1)] * 2


def test_fsdp_shares_the_batch_too():
    mesh = sharding.make_mesh(SimpleNamespace(data=2, fsdp=4, tensor=1))
    evaluator = Evaluator(Linear(), CONFIG, mesh, lambda *part: resident.batches(DATA, *part), EXAMPLES, SHAPES)
    assert evaluator(VARIABLES) == pytest.approx(in_numpy(DATA, KERNEL), rel=1e-6)


class Slow(Linear):
    def apply(self, variables, images, *, train):
        logits, out = super().apply(variables, images, train=train)
        return jax.lax.fori_loop(0, 200, lambda _, x: x[::-1], logits), out


def test_on_several_cpu_devices_a_program_waits_for_the_one_before():
    evaluator = Evaluator(Slow(), CONFIG, mesh_of(8), lambda *part: resident.batches(DATA, *part), EXAMPLES, SHAPES)
    program, made = evaluator._sums, []

    def sums(*arguments):
        assert all(leaf.is_ready() for leaf in jax.tree.leaves(made))
        made.append(program(*arguments))
        return made[-1]

    evaluator._sums = sums
    assert evaluator(VARIABLES) == pytest.approx(in_numpy(DATA, KERNEL), rel=1e-6)
    assert len(made) == 2


def test_other_parameters_under_another_prefix():
    evaluator = Evaluator(Linear(), CONFIG, mesh_of(1), lambda *part: resident.batches(DATA, *part), EXAMPLES, SHAPES)
    data = {**DATA, "mask": (np.arange(EXAMPLES) % 3 > 0).astype(np.float32)}
    some = Evaluator(Linear(), CONFIG, mesh_of(1), lambda *part: resident.batches(data, *part), EXAMPLES, SHAPES)
    negative = {"params": {"kernel": -KERNEL}}
    expected = {key.replace("val/", "val/ema_"): value for key, value in in_numpy(DATA, -KERNEL).items()}
    assert evaluator(negative, prefix="val/ema_") == pytest.approx(expected, rel=1e-6)
    assert some(VARIABLES) == pytest.approx(in_numpy(data, KERNEL), rel=1e-6)
