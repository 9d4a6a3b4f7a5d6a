"""Runs of a model with BatchNorms: their statistics are part of the state, on however many devices."""

import json
import re
import shutil

import numpy as np
import pytest

from lape_jax import evaluate
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.tasks.config import from_json
from lape_jax.train import setup, trained
from tests import runs

# float32, so that numbers can be compared; three steps with checkpoints after one and all
STEPS = {"dtype": "float32", "total_steps": 3, "checkpoint_steps": 2, "eval_steps": 3, "log_steps": 3, "ema_decay": 0.5}
CONFIG = f"{runs.ROOT}/configs/ceit_ti.py:debug"
# What comes before a BatchNorm has no gradient but rounding, which AdamW scales up.
IDLE = re.compile(r".*blocks/mlp/(fc1|conv|fc2)/bias")


def saved_state(workdir, step="last"):
    """Arrays by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, num_classes=10)
    mesh = sharding.make_mesh(config.mesh)
    state = trained.restore(workdir, config, model, mesh, step, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(state).items()}


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The workdir of a run on eight devices."""
    workdir = tmp_path_factory.mktemp("eight") / "run"
    runs.train(workdir, runs.load(CONFIG, **STEPS), devices=8)
    return workdir


@pytest.mark.slow
def test_statistics_and_their_average_move_and_are_kept(eight):
    before, after = saved_state(eight, 2), saved_state(eight, 3)
    names = [name for name in after if name.startswith("collections/batch_stats/")]
    assert len(names) == 2 * 4
    for name in names:
        mean = name.replace("collections/", "ema/")
        assert (before[name] != after[name]).any()
        np.testing.assert_allclose(after[mean], (before[mean] + after[name]) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_resumed_it_ends_with_the_same_bits(eight, tmp_path):
    resumed = runs.copy(eight, tmp_path)
    shutil.rmtree(resumed / "checkpoints" / "3")
    _, lines = runs.train(resumed, runs.load(CONFIG, **STEPS), devices=8)
    assert lines == runs.metrics(eight)
    expected, found = saved_state(eight), saved_state(resumed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.slow
def test_one_device_equals_eight(eight, tmp_path):
    _, lines = runs.train(tmp_path, runs.load(CONFIG, **STEPS))
    assert runs.losses(lines) == pytest.approx(runs.losses(runs.metrics(eight)), rel=1e-5)
    found = saved_state(tmp_path)
    for name, value in saved_state(eight).items():
        if not IDLE.fullmatch(name):
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_the_evaluate_command_finds_the_same_numbers(eight, capsys):
    args = runs.options(evaluate, workdir=eight, step="last")
    evaluate.main(from_json(eight / "config.json"), args)
    found = json.loads(capsys.readouterr().out)
    expected = runs.metrics(eight)[-1]
    assert found["val/ema_loss"] != found["val/loss"]
    for name in ("val/loss", "val/ema_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
