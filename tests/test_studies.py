"""The commands that study finished runs, in process: other resolutions, probes, attention."""

import csv

import numpy as np
import pytest

from lape_jax import probe, resolutions, visualize
from lape_jax.errors import UserError
from tests import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


def call(command, *argv):
    with runs.on(1):
        command.main([str(arg) for arg in argv])


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_accuracy_by_size(run, tmp_path, capsys):
    call(resolutions, "--workdir", run, f"--out={tmp_path}", "--sizes=8,12")
    out = capsys.readouterr().out
    rows = table(tmp_path / "resolutions.csv")
    assert [row["image_size"] for row in rows] == ["8", "12"]
    (last,) = [line for line in runs.metrics(run) if line["step"] == 44 and "val/top1" in line]
    assert float(rows[0]["val/top1"]) == pytest.approx(last["val/top1"])
    assert f"lape, learnable: 8 x 8 pixels, top-1 {last['val/top1']:.2f}%" in out
    assert {path.name for path in tmp_path.iterdir()} == {f"resolutions.{form}" for form in ("csv", "png", "pdf")}


@pytest.mark.slow
def test_probes_and_their_cache(run, tmp_path, capsys):
    options = ["--workdir", run, f"--out={tmp_path}", "--images=80", "--shots=1"]
    call(probe, *options)
    first, files = capsys.readouterr().out, {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len([name for name in files if name.startswith("features-")]) == 1
    rows = table(tmp_path / "probe.csv")
    assert [row["layer"] for row in rows] == [
        f"{layer} {what}" for layer in (1, 2) for what in ("class token", "mean of patches")
    ] + ["head"]
    assert all(10 < float(row["linear"]) <= 100 for row in rows)
    assert len(table(tmp_path / "places.csv")) == 3
    call(probe, *options)
    assert capsys.readouterr().out == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.slow
def test_attention_and_its_terms(run, tmp_path):
    options = ["--workdir", run, f"--out={tmp_path}", "--overlays=1", "--images=20"]
    call(visualize, *options, "--attention", "--positions")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"attention_0_0.png", "attention_0_0.pdf", "attention.npz", "shares.png", "shares.csv"} <= names
    with np.load(tmp_path / "attention.npz") as file:
        assert file["0/0/attention"].shape == (2, 2, 17, 17)
        np.testing.assert_allclose(file["0/0/rollout"].sum(-1), 1, rtol=1e-5)
    assert [sum(float(row[name]) for name in ("tokens", "both", "positions")) for row in table(tmp_path / "shares.csv")]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (resolutions, ["--out=x"], "give either --workdir"),
        (resolutions, ["--out=x", "--workdir", "a", "--sizes=8,big"], "--sizes is '8,big': it must be numbers"),
        (resolutions, ["--out=x", "--weights=a.npz"], "--config=FILE.py goes with --weights=FILE"),
        (probe, ["--out=x", "--weights=a.npz"], "--config=FILE.py goes with --weights=FILE"),
        (probe, ["--out=x", "--workdir", "a", "--shots=few"], "--shots is 'few': it must be a whole number"),
        (visualize, ["--out=x", "--weights=a.npz", "--attention"], "look at the images of a run"),
        (visualize, ["--out=x", "--workdir", "a", "--attention", "--overlays=0"], "--overlays=0 leaves none"),
        (visualize, ["--out=x", "--workdir", "a", "--positions", "--images=0"], "--images=0 leaves none"),
        (visualize, ["--out=x", "--weights=a.npz", "--step=3"], "--step is of a run: leave it out"),
    ],
)
def test_mistakes(command, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call(command, *options)


def test_a_probe_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match="fitted by scikit-learn, which is not installed"):
        call(probe, f"--out={tmp_path}", "--workdir", "nowhere")
