"""The evaluate command on a run that segments: scores of each class, and overlays."""

import csv
import json

import numpy as np
import pytest

from lape_jax import evaluate
from lape_jax.config.reading import to_json
from lape_jax.errors import UserError
from lape_jax.tasks.config import from_json
from lape_jax.tasks.segment import overlays
from lape_jax.tasks.segment.digits import DigitScenes
from tests import runs, scene_run

METRICS = ("miou", "mean_accuracy", "pixel_accuracy", "examples")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return scene_run.workdir(tmp_path_factory.getbasetemp() / "scenes")


def run(workdir, capsys, **options):
    with runs.on(1):
        evaluate.main(from_json(workdir / "config.json"), runs.options(evaluate, workdir=workdir, **options))
    return json.loads(capsys.readouterr().out)


def test_what_is_written(workdir, tmp_path, capsys, monkeypatch):
    drawn = []
    comparison = overlays.comparison
    monkeypatch.setattr(overlays, "comparison", lambda *args: drawn.append(args) or comparison(*args))
    out = tmp_path / "a" / "b"
    found = run(workdir, capsys, out=str(out), overlays="3")
    assert list(found) == [
        "workdir",
        "step",
        "chosen",
        *(f"val/{ema}{name}" for ema in ("", "ema_") for name in METRICS),
    ]
    assert (found["step"], found["val/examples"]) == (scene_run.STEP, 29)
    assert {path.name for path in out.iterdir()} == {"iou.csv", "iou.png", "overlays.png"}
    head, *rows = csv.reader((out / "iou.csv").read_text().splitlines())
    assert head == ["number", "class", "iou", "accuracy", "pixels"]
    assert [row[1] for row in rows] == ["paper", *map(str, range(10))]
    val = DigitScenes("val")
    pixels = np.bincount(np.concatenate([val[index].mask.ravel() for index in range(len(val))]))
    assert [int(row[4]) for row in rows] == pixels.tolist()
    assert np.mean([float(row[2]) for row in rows]) == pytest.approx(found["val/miou"], abs=1e-4)
    accuracy = np.array([float(row[3]) for row in rows])
    assert accuracy.mean() == pytest.approx(found["val/mean_accuracy"], abs=1e-4)
    assert accuracy @ pixels / pixels.sum() == pytest.approx(found["val/pixel_accuracy"], abs=1e-4)
    ((rows, _, titles, names),) = drawn
    assert (len(rows), titles, names[1]) == (3, ["prediction"], "digits val[9]")


@pytest.mark.slow
def test_without_overlays(workdir, tmp_path, capsys):
    found = run(workdir, capsys, out=str(tmp_path / "out"), overlays="0")
    assert found == run(workdir, capsys)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"iou.csv", "iou.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlays": "3"}, "--overlays needs --out=DIR"),
        ({"overlays": "-1", "out": "{tmp}"}, "--overlays is '-1': it must be a whole number, at least 0"),
        ({"out": "{workdir}/config.json"}, "config.json cannot be made"),
    ],
)
def test_mistakes(workdir, tmp_path, capsys, options, message):
    with pytest.raises(UserError, match=message):
        run(workdir, capsys, **{name: text.format(tmp=tmp_path, workdir=workdir) for name, text in options.items()})


def test_it_is_not_for_classification(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(runs.load()))
    with pytest.raises(
        UserError, match="--out: there is nothing more to say of task=classify than its metrics; leave it out"
    ):
        run(tmp_path, capsys, out="out")
