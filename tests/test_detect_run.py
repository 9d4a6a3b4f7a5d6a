"""Runs that detect, from end to end: what they leave, what must not change their numbers, and what is made of them.

All are slow: a step of a detector, however small, takes a minute to compile.
"""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from lape_jax import cli, convert, evaluate, models, port, predict, visualize
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.port.params import flatten
from lape_jax.tasks.config import from_json
from lape_jax.tasks.detect import recipes
from lape_jax.tasks.detect.digits import DigitPhotos
from lape_jax.tasks.detect.evaluate import PhotoEvaluator
from lape_jax.tasks.detect.scores import FIGURES
from lape_jax.train import setup, trained
from tests import runs
from tests.port.tiny import identical, random_variables

pytestmark = pytest.mark.slow

DEBUG = f"{runs.ROOT}/configs/mask_rcnn_vit_adapter_ti_coco.py:debug"
RUN = {
    "total_steps": 4,
    "batch_size": 8,
    "log_percent": 50,
    "eval_percent": 100,
    "checkpoint_percent": 50,
    "optimizer.lr": 1e-3,
    "model.drop_path": 0.2,
    "model.score_threshold": 0.001,
    "ema_decay": 0.9,
}
METRICS = [f"val/{ema}{kind}_{name}" for ema in ("", "ema_") for kind in ("box", "mask") for name in FIGURES]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of the run that the others are compared with: one device, not interrupted, with a report."""
    path = tmp_path_factory.mktemp("whole") / "tiny"
    runs.train(path, runs.load(DEBUG, **RUN, report=True))
    return path


def saved_state(workdir, step):
    """Arrays by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, 10)
    with runs.on(1):
        mesh = sharding.make_mesh(config.mesh)
        state = trained.restore(workdir, config, model, mesh, step, sharding.REPLICATED).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(state).items()}


def test_what_it_leaves(workdir):
    lines = runs.metrics(workdir)
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert {"train/loss", "train/loss_rpn_class", "train/loss_mask", "train/accuracy", "lr"} <= {*lines[0]}
    assert np.isfinite(runs.losses(lines)).all()
    assert {*lines[-1]} == {"step", *METRICS, "val/examples", "val/ema_examples"}
    assert lines[-1]["val/examples"] == 59
    text = (workdir / "report.md").read_text()
    assert "mask_rcnn_vit_adapter_ti, joining lape" in text
    for name in ("curves", "images"):
        with Image.open(workdir / "figures" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn


def test_a_killed_run_ends_in_the_same_bits(workdir, tmp_path):
    killed = runs.copy(workdir, tmp_path)
    shutil.rmtree(killed / "checkpoints" / "4")
    runs.train(killed, runs.load(DEBUG, **RUN))
    assert runs.metrics(killed) == runs.metrics(workdir)
    resumed, whole = saved_state(killed, 4), saved_state(workdir, 4)
    assert resumed.keys() == whole.keys()
    for name in whole:
        assert resumed[name].tobytes() == whole[name].tobytes(), name


def test_eight_devices_train_as_one(workdir, tmp_path):
    _, lines = runs.train(tmp_path, runs.load(DEBUG, **RUN), devices=8)
    expected = runs.metrics(workdir)
    assert runs.losses(lines) == pytest.approx(runs.losses(expected), rel=1e-5)


def test_evaluate(workdir, tmp_path, capsys):
    with runs.on(1):
        args = runs.options(evaluate, workdir=workdir, step="last", out=tmp_path, overlays="2")
        evaluate.main(from_json(workdir / "config.json"), args)
    found = json.loads(capsys.readouterr().out)
    expected = runs.metrics(workdir)[-1]
    assert [found[name] for name in METRICS] == [expected[name] for name in METRICS]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("ap.csv", "detections.json", "box_ap.png", "precision_recall.png", "overlays.png")
    }
    head, *rows = csv.reader((tmp_path / "ap.csv").read_text().splitlines())
    assert head[:3] == ["number", "class", "box_ap"]
    source = DigitPhotos("val")
    labels = np.concatenate([source[index].objects.labels for index in range(len(source))])
    assert [int(row[-1]) for row in rows] == np.bincount(labels, minlength=10).tolist()
    assert np.mean([float(row[2]) for row in rows]) == pytest.approx(found["val/box_ap"], abs=1e-4)
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {*results[0]} == {"image_id", "category_id", "bbox", "segmentation", "score"}
    assert len({one["image_id"] for one in results}) <= 59


def test_convert_to_the_official_names_and_back(workdir, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    convert.main([str(workdir), str(there), "--step=last"])
    convert.main([str(there), str(back), "--to=lape"])
    run = trained.of_run(workdir, step=trained.LAST)
    for path in (there, back):
        identical(port.load(path, run.model), jax.device_get(run.variables))
    names = {name.partition(".")[0] for name in safetensors.numpy.load_file(there)}
    assert names == {"backbone", "neck", "rpn_head", "roi_head"}


def test_a_run_begins_with_the_encoder_of_a_classifier(tmp_path, caplog):
    sizes = {name: recipes.TINY[name] for name in ("width", "depth", "heads")}
    classifier = models.create("deit_ti", join="default", image_size=64, num_classes=7, **sizes)
    theirs = random_variables(classifier)
    port.save(tmp_path / "deit.npz", theirs, classifier)
    config = runs.load(DEBUG, **RUN, **{"init.weights": tmp_path / "deit.npz"})
    runs.train(tmp_path / "run", config)
    said = [line.removeprefix(f"from {tmp_path}/deit.npz, ").partition(": ") for line in caplog.messages]
    said = {kind: set(names.split(", ")) for kind, _, names in said}
    assert said["resized"] == {"pos_embed"}
    assert said["dropped"] == {"head/kernel", "head/bias", "cls_token", "norm/scale", "norm/bias"}
    assert {"blocks/pe_norm/scale", "rpn_head/rpn_cls/kernel", "spm/fc1/kernel"} < said["initialised"]
    theirs, found = flatten(theirs), saved_state(tmp_path / "run", 4)
    assert said["loaded"] == theirs.keys() - said["dropped"] - said["resized"]
    for name in said["loaded"]:  # in four steps nothing moves far
        np.testing.assert_allclose(found[f"params/{name}"], theirs[name], atol=0.01, err_msg=name)


def test_predict(workdir, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for index in (0, 1):
        Image.fromarray(DigitPhotos("val")[index].image()).save(images / f"{index}.png")
    Image.fromarray(np.zeros((200, 50, 3), np.uint8)).save(images / "high.png")
    with runs.on(1):
        predict.main(cli.load_config("", str(workdir)), runs.options(predict, [images], workdir=workdir, out=out))
    assert "3 of 3 images" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        *("0_overlay.png", "1_overlay.png", "high_overlay.png", "detections.json")
    }
    found = json.loads((out / "detections.json").read_text())
    assert [image["file_name"] for image in found["images"]] == [
        str(images / f"{name}.png") for name in ("0", "1", "high")
    ]
    assert [one["name"] for one in found["categories"]] == [str(digit) for digit in range(10)]
    for one in found["annotations"]:
        x, y, w, h = one["bbox"]
        size = found["images"][one["image_id"] - 1]
        assert min(x, y, w, h) >= 0
        assert x + w <= size["width"] + 1e-3
        assert y + h <= size["height"] + 1e-3


def test_visualize(workdir, tmp_path):
    with runs.on(1):
        visualize.main(["--workdir", str(workdir), f"--out={tmp_path}", "--images=4", "--overlays=2"])
    assert {"overlays.png", "overlays.pdf", "correlation_token.png"} <= {path.name for path in tmp_path.iterdir()}


def test_an_evaluation_compiles_three_programs_at_most(workdir):
    config = from_json(workdir / "config.json")
    config.detect.test_canvases = 3
    model = setup.build_model(config, 10)
    with runs.on(1):
        mesh = sharding.make_mesh(config.mesh)
        state = trained.restore(workdir, config, model, mesh, 4, sharding.REPLICATED).state
        evaluator = PhotoEvaluator(model, config, mesh)
        pixels = [np.zeros((h, w, 3), np.uint8) for h, w in ((96, 128), (50, 60), (128, 96), (90, 30), (20, 100))]
        found = list(evaluator.find(jax.device_get(state.variables), pixels))
    assert len(found) == 5
    assert evaluator.programs == 2
