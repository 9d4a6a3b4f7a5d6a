"""Runs that start from the weights of another model: a run's, or a file's."""

import json

import jax
import numpy as np
import pytest

from lape_jax import port
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port.params import flatten
from lape_jax.port.transfer import Transfer
from lape_jax.tasks.config import from_json
from lape_jax.train import trained, warm_start
from tests import runs

BEGIN = {"total_steps": 2, "optimizer.lr": 1e-12, "optimizer.warmup_lr": 0, "optimizer.min_lr": 0, "ema_decay": 0.5}
BEGIN |= {"eval_steps": 2, "checkpoint_steps": 2, "log_steps": 2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The workdir of a default-joined run."""
    workdir = tmp_path_factory.mktemp("default")
    runs.train(workdir, runs.load(**{**runs.LEARNING, "ema_decay": 0, "model.join": "default"}))
    return workdir


def best(workdir):
    config = from_json(workdir / "config.json")
    with runs.on(1):
        found = trained.of_run(workdir, config, mesh=sharding.make_mesh(config.mesh))
        model, variables = found.model, found.variables
    return model, jax.device_get(variables)


@pytest.mark.slow
def test_lape_from_the_workdir_of_a_default_run(default, tmp_path, caplog):
    config = runs.load(**BEGIN, **{"init.weights": default})
    _, lines = runs.train(tmp_path, config, devices=2)
    (_, theirs), (_, ours) = best(default), best(tmp_path)
    theirs, ours = flatten(theirs), flatten(ours)
    for path, array in theirs.items():
        np.testing.assert_allclose(ours[path], array, rtol=1e-5, atol=1e-7, err_msg=path)
    np.testing.assert_allclose(ours["blocks/pe_norm/scale"], theirs["blocks/norm1/scale"], rtol=1e-5)
    assert lines[-1]["val/loss"] == pytest.approx(lines[-1]["val/ema_loss"], rel=1e-4)
    assert "initialised: blocks/pe_norm/bias, blocks/pe_norm/scale" in caplog.text


@pytest.mark.slow
def test_a_file_of_another_resolution_which_the_resumed_run_does_without(default, tmp_path):
    model, variables = best(default)
    port.save(tmp_path / "default.safetensors", variables, model)
    path = tmp_path / "run"
    overrides = {**BEGIN, "init.weights": tmp_path / "default.safetensors", "data.image_size": 12}
    runs.train(path, runs.load(**overrides))
    (tmp_path / "default.safetensors").unlink()
    runs.train(path, runs.load(**{**overrides, "total_steps": 3}))
    assert json.loads((path / "config.json").read_text())["total_steps"] == 3


def test_what_cannot_be_started_from(tmp_path):
    with pytest.raises(UserError, match=r"config.init.weights: .*none.npz"):
        runs.train(tmp_path / "run", runs.load(**BEGIN, **{"init.weights": tmp_path / "none.npz"}))
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(UserError, match=r"config.init.pe_norm: .*norm1"):
        runs.train(tmp_path / "run", runs.load(**BEGIN, **{"init.pe_norm": "norm2"}))


RESULT, FRESH = ({"params": {"head": {"bias": np.full(2, value)}}} for value in (1.0, 0.0))
MOVED = Transfer(loaded=("head/bias",), resized=(), initialised=(), dropped=())


@pytest.mark.parametrize(
    ("theirs", "match", "head", "note"),
    [
        (("cat", "dog"), "name", 1, ""),
        (
            ("dog", "cat"),
            "name",
            0,
            "the head is not taken over, as it is of other classes: 'dog' there where 'cat' is",
        ),
        (("dog", "cat"), "order", 1, "the head is taken over number by number, as data.match=order asks"),
        (None, "name", 1, "the head is taken over: the file does not say its classes"),
    ],
)
def test_a_head_is_of_classes_with_names(theirs, match, head, note):
    result, moved = warm_start.of_same_classes(RESULT, MOVED, FRESH, theirs, ("cat", "dog"), match)
    np.testing.assert_array_equal(result["params"]["head"]["bias"], np.full(2, head))
    assert ("head/bias" in moved.loaded) == bool(head)
    assert ("head/bias" in moved.initialised) == (not head)
    assert "".join(moved.notes).startswith(note)
    assert bool(moved.notes) == bool(note)


def test_without_a_head_nothing_is_said():
    bare = MOVED._replace(loaded=("norm/bias",))
    assert warm_start.of_same_classes(RESULT, bare, FRESH, ("dog",), ("cat",), "name") == (RESULT, bare)
