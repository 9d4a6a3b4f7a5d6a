"""Distilled runs from end to end: a student learns from the workdir of a run, and from a file of weights."""

import json
import math

import jax
import numpy as np
import pytest

from lape_jax import evaluate, models, port
from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.tasks.config import from_json
from tests import runs

# Six epochs in which the teacher learns nine digits of ten, and one epoch to compare runs by.
LEARNING = {"batch_size": 32, "total_epochs": 6, "warmup_epochs": 1, "optimizer.lr": 5e-3, "loss.label_smoothing": 0}
LEARNING |= {"log_epochs": 2, "eval_epochs": 3, "checkpoint_epochs": 3}
SHORT = {**LEARNING, "total_epochs": 1, "warmup_epochs": 0, "eval_epochs": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a run without distillation."""
    workdir = tmp_path_factory.mktemp("teacher")
    runs.train(workdir, runs.load(**LEARNING))
    return workdir


def distilled(teacher, **overrides):
    return runs.load(**overrides, **{"model.distilled": True, "distill.teacher": teacher})


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The workdir of its student, on one device."""
    workdir = tmp_path_factory.mktemp("student")
    runs.train(workdir, distilled(teacher, **SHORT))
    return workdir


@pytest.mark.slow
def test_it_learns_and_leaves_its_teacher_as_it_was(teacher, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in teacher.rglob("*") if path.is_file()}
    _, lines = runs.train(tmp_path, distilled(teacher, **LEARNING))
    assert {path: path.stat().st_mtime_ns for path in teacher.rglob("*") if path.is_file()} == before
    train = [line["train/loss"] for line in lines if "train/loss" in line]
    assert train[-1] < 0.75 * train[0]
    assert lines[-1]["val/top1"] > 40  # 10 is chance
    assert runs.metrics(teacher)[-1]["val/top1"] > 80


@pytest.mark.slow
def test_devices_and_micro_batches_change_nothing(teacher, student, tmp_path):
    _, lines = runs.train(tmp_path, distilled(teacher, **SHORT, **{"optimizer.accumulate": 2}), devices=4)
    assert runs.losses(lines) == pytest.approx(runs.losses(runs.metrics(student)), rel=1e-6)


@pytest.mark.slow
def test_the_student_is_evaluated_without_its_teacher(student, tmp_path, capsys):
    alone = runs.copy(student, tmp_path)
    config = from_json(alone / "config.json")
    config.distill.teacher = str(tmp_path / "gone")
    evaluate.main(config, runs.options(evaluate, workdir=alone, step="last"))
    found = json.loads(capsys.readouterr().out)
    assert found["val/loss"] == pytest.approx(runs.metrics(student)[-1]["val/loss"], rel=1e-6)


@pytest.mark.slow
def test_the_teachers_labels_are_what_is_learnt(tmp_path):
    """One that always says 3 is soon believed where nothing but its labels counts."""
    model = models.create("vit_micro", image_size=8, in_channels=1, num_classes=10)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.param_shapes())
    params["head"]["bias"][3] = 1.0
    port.save(tmp_path / "teacher.npz", {"params": params}, model)
    distilling = {"distill.teacher": tmp_path / "teacher.npz", "distill.model": "vit_micro", "distill.alpha": 1.0}
    quick = {**SHORT, "optimizer.lr": 1e-2, "log_epochs": 0.25, "model.distilled": True}
    config = runs.load(**quick, **distilling)
    _, lines = runs.train(tmp_path / "run", config)
    train = [line["train/loss"] for line in lines if "train/loss" in line]
    assert 0.5 < train[0] < math.log(10)
    assert train[-1] < 0.2
    source = sources.digits("val")
    threes = np.mean([source[index].label == 3 for index in range(len(source))])
    assert lines[-1]["val/top1"] == pytest.approx(100 * threes, abs=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.distilled": True}, r"vit_micro has a distillation token, .* config.distill.teacher is empty"),
        ({"distill.teacher": "t.pth"}, "config.distill.teacher is 't.pth', but vit_micro has no distillation token"),
        ({"model.distilled": True, "distill.teacher": "t.pth"}, "config.distill.teacher is 't.pth', which does not ex"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        runs.train(tmp_path / "run", runs.load(**overrides))
    assert not (tmp_path / "run").exists()
