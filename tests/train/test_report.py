"""The report at the end of a run."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from lape_jax.data import order, sources
from lape_jax.errors import UserError
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify import inputs, sheet
from lape_jax.tasks.task import SHEET
from lape_jax.train import report, setup
from tests import runs

LOGGED = {"report": True, "total_steps": 4, "warmup_steps": 0, "log_steps": 1, "eval_steps": 2, "checkpoint_steps": 4}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run with a report, and files that were there before."""
    path = tmp_path_factory.mktemp("report") / "tiny"
    runs.train(path, runs.load(**LOGGED))
    return path


def test_files(workdir):
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {"curves.png", "images.png", "correlation_token.png", "correlation_overall.png"}
    for name in figures:
        with Image.open(workdir / "figures" / name) as image:
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    assert not list(workdir.rglob("*.partial"))


def test_text(workdir):
    text = (workdir / "report.md").read_text()
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert text.startswith("# tiny\n")
    assert "vit_micro, joining lape, position embedding learnable: " in text
    assert "4 steps of 64 images" in text
    assert f"| val/top1 | {last['val/top1']:.6g} |" in text
    for figure in (workdir / "figures").iterdir():
        assert f"](figures/{figure.name})" in text
    assert "\n         1 " in text  # the first layer's line of the table of positions


@pytest.mark.slow
def test_a_run_that_is_complete_gives_the_same_report(workdir, tmp_path):
    again = runs.copy(workdir, tmp_path)
    before = {path.name: path.read_bytes() for path in (again / "figures").iterdir()}
    (again / "report.md").unlink()
    config = runs.load(**LOGGED)
    runs.train(again, config)
    assert {path.name: path.read_bytes() for path in (again / "figures").iterdir()} == before
    assert (again / "report.md").read_text().splitlines()[2:] == (workdir / "report.md").read_text().splitlines()[2:]


@pytest.mark.slow
def test_without_positions(tmp_path):
    config = runs.load(report=True, total_steps=1, warmup_steps=0, **{"model.pe": "none", "model.join": "default"})
    runs.train(tmp_path / "bare", config)
    assert "No maps of positions: " in (tmp_path / "bare" / "report.md").read_text()
    assert {path.name for path in (tmp_path / "bare" / "figures").iterdir()} == {"curves.png", "images.png"}


def test_curves_leave_gaps_where_json_has_no_number():
    lines = [
        {"step": 1, "train/loss": 2.0, "lr": 0.1},
        {"step": 2, "train/loss": None, "lr": 0.2},
        {"step": 2, "val/loss": 3},
    ]
    panels = report.curves(lines, TASKS["classify"])
    assert list(panels) == ["loss", "learning rate"]
    steps, values = panels["loss"]["training"]
    assert steps == [1, 2]
    assert values[0] == 2.0
    assert math.isnan(values[1])
    assert panels["loss"]["validation"] == ([2], [3])
    assert panels["learning rate"]["training"] == ([1, 2], [0.1, 0.2])


def test_the_sheet_shows_the_first_images_of_the_run():
    config = runs.load(**{"loss.label_smoothing": 0.1})
    source = sources.open_split(config.data, "train")
    images, titles = sheet.augmented(config, setup.build_model(config, 10), source, mixing=False)
    first = order.batch_indices(config.seed, 0, SHEET, len(source))
    expected = inputs.training_set(config, source)
    np.testing.assert_allclose(images * 255, expected["image"][first], atol=1e-3)
    assert titles == [source.classes[label] for label in expected["label"][first]]


def test_mixed_labels_are_named_with_their_weights():
    config = runs.load(**{"augment.mixup": 0.8, "loss.label_smoothing": 0.0})
    source = sources.open_split(config.data, "train")
    _, titles = sheet.augmented(config, setup.build_model(config, 10), source, mixing=True)
    mixed = [title for title in titles if " + " in title]
    assert len(mixed) > len(titles) // 2  # of different classes
    for title in mixed:
        (a, _), (b, _) = (part.split(" ") for part in title.split(" + "))
        assert float(a) + float(b) == pytest.approx(1, abs=0.011)


@pytest.mark.slow
def test_a_directory_that_cannot_be_made(workdir, tmp_path):
    again = runs.copy(workdir, tmp_path)
    for path in (again / "figures").iterdir():
        path.unlink()
    (again / "figures").rmdir()
    (again / "figures").write_text("in the way")
    config = runs.load(**LOGGED)
    with pytest.raises(UserError, match=r"figures' cannot be made"):
        runs.train(again, config)
