"""A run from end to end, on real images: what it learns, what it leaves, and all that must not change its numbers."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import evaluate
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.tasks.config import from_json
from lape_jax.train import setup, trained
from lape_jax.train.checkpoint import Checkpoints
from tests import quick, runs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of the run that the others are compared with: one device, float32, data on the device."""
    return runs.finished(tmp_path_factory.getbasetemp())


def saved_state(workdir, step="last"):
    """Arrays by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, num_classes=10)
    mesh = sharding.make_mesh(config.mesh)
    state = trained.restore(workdir, config, model, mesh, step, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(state).items()}


def test_it_learns(workdir):
    lines = runs.metrics(workdir)
    train = [line["train/loss"] for line in lines if "train/loss" in line]
    assert train[0] == pytest.approx(math.log(10), abs=0.05)
    assert train[-1] < train[0] - 0.05
    assert lines[-1]["val/loss"] < math.log(10) - 0.05
    assert lines[-1]["val/top1"] > 20 > 13 > lines[1]["val/top1"]  # 10 is chance


def test_it_leaves_what_can_be_read(workdir):
    lines = runs.metrics(workdir)
    names = ["train/loss", "train/top1", "train/grad_norm", "lr", "epoch"]
    evaluated = [f"val/{ema}{name}" for ema in ("", "ema_") for name in ("top1", "top5", "loss", "examples")]
    assert [line["step"] for line in lines] == [11, 11, 22, 22, 33, 33, 44, 44]
    assert [list(line) for line in lines] == 4 * [["step", *names], ["step", *evaluated]]
    assert [line["epoch"] for line in lines if "epoch" in line] == [0.5, 1.0, 1.5, 2.0]
    assert {line["val/examples"] for line in lines if "val/examples" in line} == {359}
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-2]).keys() >= runs.TIMES

    assert from_json(workdir / "config.json") == runs.load(**runs.LEARNING)
    checkpoints = Checkpoints(workdir, read_only=True)
    tops = {line["step"]: line["val/top1"] for line in lines if "val/top1" in line}
    best = max(tops, key=tops.get)
    assert checkpoints.steps() == sorted({best, 22, 33, 44})
    assert checkpoints.best_step() == best
    files = {path.name.split(".")[0] for path in workdir.iterdir()}
    assert files == {"config", "data", "metrics", "events", "checkpoints"}


def test_the_average_is_evaluated_beside_the_weights(workdir):
    state, last = saved_state(workdir), runs.metrics(workdir)[-1]
    assert last["val/ema_loss"] != last["val/loss"]
    assert last["val/ema_examples"] == 359
    names = [name.removeprefix("ema/") for name in state if name.startswith("ema/")]
    assert names == [name for name in state if name.startswith("params/")]
    assert any((state[f"ema/{name}"] != state[name]).any() for name in names)


@pytest.mark.parametrize("step", quick.first(1, ["22", "last"]))
def test_the_evaluate_command_finds_the_same_numbers(workdir, capsys, step):
    args = runs.options(evaluate, workdir=workdir, step=step)
    evaluate.main(from_json(workdir / "config.json"), args)
    found = json.loads(capsys.readouterr().out)
    number = {"last": 44}.get(step) or int(step)
    (expected,) = (line for line in runs.metrics(workdir) if line["step"] == number and "val/loss" in line)
    assert found.pop("workdir") == str(workdir)
    assert found.pop("chosen") == {"last": "the newest"}.get(step, "as asked")
    assert found == pytest.approx(expected, rel=1e-6)  # on eight devices, and not on one


def test_the_same_command_again_changes_nothing(workdir, tmp_path):
    again = runs.copy(workdir, tmp_path)
    before = (again / "metrics.jsonl").read_bytes()
    results, lines = runs.train(again, runs.load(**runs.LEARNING))
    assert (again / "metrics.jsonl").read_bytes() == before
    assert {"step": 44, **results} == lines[-1]


@pytest.mark.slow
def test_a_finished_run_goes_on_when_it_is_given_more_epochs(workdir, tmp_path, caplog, capsys):
    longer = runs.copy(workdir, tmp_path)
    before = (longer / "metrics.jsonl").read_text()
    results, lines = runs.train(longer, runs.load(**runs.LEARNING | {"total_epochs": 3}))
    assert (longer / "metrics.jsonl").read_text().startswith(before)
    assert [line["step"] for line in lines[8:]] == [55, 55, 66, 66]
    assert lines[-1]["val/loss"] < lines[7]["val/loss"] - 0.05
    assert saved_state(longer)["step"] == 66
    assert caplog.messages == ["config.total_epochs was 2.0 so far, and is 3.0 from here on"]
    out, err = capsys.readouterr()
    first, *_, last = out.splitlines()
    assert first == "vit_micro (join lape, pe learnable): 7,194 parameters on 1 cpu (data 1 x fsdp 1 x tensor 1)"
    assert "resuming at step 44 of 66 steps (3.0 epochs of 22 steps, batch 64)" in out
    assert last.startswith("done: 66 steps, the last 22 in 0:")
    assert f"top-1 {results['val/top1']:.2f}%" in last
    assert f"EMA top-1 {results['val/ema_top1']:.2f}%" in last
    assert f"best checkpoint: step {Checkpoints(longer, read_only=True).best_step()}, in {longer}" in last
    assert err == ""


# ---- What must not change the numbers --------------------------------------------------------------------------------


def assert_same_run(lines, reference, rel=1e-6):
    assert [line["step"] for line in lines] == [line["step"] for line in reference]
    assert runs.losses(lines) == pytest.approx(runs.losses(reference), rel=rel)
    norms, expected = ([line["train/grad_norm"] for line in run[::2]] for run in (lines, reference))
    assert norms == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def placed(monkeypatch):
    """The PartitionSpec of every array, by name, of the last state that was saved."""
    specs, save = {}, Checkpoints.save

    def spy(self, step, state, metrics=None):
        specs.update({name: leaf.sharding.spec for name, leaf in rules.flat_names(state).items()})
        return save(self, step, state, metrics)

    monkeypatch.setattr(Checkpoints, "save", spy)
    return specs


@pytest.mark.slow
def test_sharded_parameters_change_nothing(workdir, tmp_path, placed):
    strategies = (("pos_embed|cls_token", "replicate"), (".*", "fsdp(1)"))
    mesh = {"mesh.data": 4, "mesh.fsdp": 2, "sharding": strategies}
    _, lines = runs.train(tmp_path, runs.load(**runs.LEARNING, **mesh), devices=8)
    assert_same_run(lines, runs.metrics(workdir))
    kernels = [name for name in placed if name.endswith("blocks/mlp/fc1/kernel")]
    assert len(kernels) == 4  # the parameter, its average, and two moments
    assert {placed[name] for name in kernels} == {jax.P(None, None, "fsdp")}  # (layers, 16, 64)
    assert {placed[name] for name in placed if name.endswith(("pos_embed", "step", "count"))} == {jax.P()}


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch(workdir, tmp_path):
    _, lines = runs.train(tmp_path, runs.load(**runs.LEARNING, **{"optimizer.accumulate": 4}))
    assert_same_run(lines, runs.metrics(workdir))


@pytest.mark.slow
def test_streamed_images_equal_resident_ones(tmp_path):
    folder = runs.write_png_folder(tmp_path / "png", each=20)
    trivial = {"data.scale": (1.0, 1.0), "data.ratio": (1.0, 1.0), "data.threads": 2}  # the crop is the whole image
    config = {"data.source": "folder", "data.path": folder, "total_epochs": 3, "optimizer.lr": 1e-2} | trivial
    _, resident = runs.train(tmp_path / "resident", runs.load(**config))
    _, streamed = runs.train(tmp_path / "streamed", runs.load(**config | {"data.resident": False}))
    assert_same_run(streamed, resident)
    assert resident[-1]["step"] == 9
    assert resident[-1]["val/examples"] == 200


@pytest.mark.slow
def test_bfloat16_learns_as_well(workdir, tmp_path):
    _, lines = runs.train(tmp_path, runs.load(**runs.LEARNING, dtype="bfloat16"))
    reference = runs.metrics(workdir)
    assert runs.losses(lines) != runs.losses(reference)
    assert runs.losses(lines) == pytest.approx(runs.losses(reference), abs=0.03)
    state = saved_state(tmp_path)
    assert {leaf.dtype for name, leaf in state.items() if name.startswith("params/")} == {jnp.dtype("float32")}
