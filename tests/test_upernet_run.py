"""Runs of a UperNet, from end to end: what must not change their numbers, and the commands on what they leave.

Training is compiled for most of a minute, so nearly all of it is left to `-m slow`.
"""

import dataclasses
import functools
import json
import re
import shutil

import cv2
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lape_jax import evaluate, export, port, predict, visualize
from lape_jax.augment.photometric import normalise
from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.nn.resize import resize_maps
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.config import from_json
from lape_jax.tasks.segment.digits import DigitScenes
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.train import setup, trained
from tests import quick, runs

CONFIG = f"{runs.ROOT}/configs/upernet_vit_adapter_ti_ade20k.py:debug"
# All that is random takes part, and at this rate a few steps make a difference. A checkpoint lies between log lines.
RUN = {
    "dtype": "float32",
    "total_steps": 6,
    "log_percent": 50,
    "eval_percent": 100,
    "checkpoint_percent": 66,
    "batch_size": 16,
    "optimizer.lr": 2e-3,
    "eval_batch_size": 8,
    "ema_decay": 0.9,
    "report": True,
}
METRICS = [f"val/{ema}{name}" for ema in ("", "ema_") for name in ("miou", "mean_accuracy", "pixel_accuracy")]
# Behind them comes a BatchNorm, so that their gradient is nothing but rounding, which AdamW scales up.
IDLE = re.compile(r".*(spm/fc\d|level_embed|up/).*bias|.*level_embed")


def test_one_image_at_a_time_is_refused_before_anything_is_made():
    for settings in ({"batch_size": 1}, {"batch_size": 8, "optimizer.accumulate": 8}):
        config = runs.load(CONFIG, **settings)
        model = setup.build_model(config, 11)
        with pytest.raises(UserError, match=r"accumulate is 1, but upernet_vit_adapter_ti needs at least 2 images"):
            setup.check_training(config, model)
    setup.check_training(runs.load(CONFIG, batch_size=16, **{"optimizer.accumulate": 8}), model)


def test_a_multiple_that_the_model_does_not_take():
    config = runs.load(CONFIG, **{"segment.multiple": 24})
    model, mesh = setup.build_model(config, 11), sharding.data_mesh()
    with pytest.raises(UserError, match=r"segment.multiple is 24, but the model takes .* multiples of 32, not 24 x 24"):
        SceneEvaluator(model, config, mesh)


@pytest.mark.slow
def test_small_images_are_seen_as_they_are():
    """At two scales, by one window each, of 64 x 64, 32 x 32 and 32 x 64 pixels; the last is of a panorama."""
    settings = {"dtype": "float32", "data.image_size": 64, "segment.scales": (0.5, 1.0), "eval_batch_size": 2}
    config = runs.load(CONFIG, **settings)
    model, rng = setup.build_model(config, 11), np.random.default_rng(0)
    shapes = model.variable_shapes()
    variables = {
        "params": jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes["params"]),
        "batch_stats": jax.tree.map(lambda x: rng.uniform(0.1, 0.4, x.shape).astype(np.float32), shapes["batch_stats"]),
    }
    images = [cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), size) for size in ((50, 40), (300, 20))]
    canvases = {(40, 50): [(24, 30), (32, 32), (48, 60), (64, 64)], (20, 300): [(2, 32), (32, 32), (4, 64), (32, 64)]}
    with runs.on(1):
        found = list(SceneEvaluator(model, config, sharding.data_mesh(jax.devices()[:1])).maps(variables, images))
        apply = jax.jit(lambda x: model.apply(variables, normalise(x, config.data.mean, config.data.std))[0])
        for image, labels in zip(images, found, strict=True):
            votes, sizes = 0.0, canvases[image.shape[:2]]
            for fitted, canvas in zip(sizes[::2], sizes[1::2], strict=True):
                seen = cv2.resize(cv2.resize(image, fitted[::-1]), canvas[::-1])
                votes += jax.nn.softmax(resize_maps(apply(seen[None]), image.shape[:2], "bilinear")[0])
            assert len(np.unique(labels)) > 1
            largest = np.sort(votes, axis=-1)
            near = largest[..., -1] - largest[..., -2] < 1e-4  # as where the scales are sure of two classes
            assert near.mean() < 0.2
            np.testing.assert_array_equal(labels[~near], np.argmax(votes, -1)[~near])


# ---- What must not change the numbers --------------------------------------------------------------------------------


def saved_state(workdir, step="last"):
    """Arrays by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, len(DigitScenes.classes))
    with runs.on(1):
        mesh = sharding.make_mesh(config.mesh)
        state = trained.restore(workdir, config, model, mesh, step, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(state).items()}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of the run that the others are compared with: one device, not interrupted, with a report."""
    path = tmp_path_factory.mktemp("upernet") / "tiny"
    runs.train(path, runs.load(CONFIG, **RUN))
    return path


@pytest.mark.slow
def test_what_it_leaves(workdir):
    lines = runs.metrics(workdir)
    assert [line["step"] for line in lines] == [3, 6, 6]
    first, second, last = lines
    assert np.log(11) * 1.2 < first["train/loss"] < np.log(11) * 1.6  # with 0.4 of the auxiliary head's
    assert second["train/loss"] < first["train/loss"] - 0.02
    assert {*last} == {"step", *METRICS, "val/examples", "val/ema_examples"}
    before, after = saved_state(workdir, 4), saved_state(workdir, 6)
    moved = [name for name in after if name.startswith(("params/", "collections/batch_stats/"))]
    assert len(moved) > 200
    assert all((before[name] != after[name]).any() for name in moved if "gamma" not in name)
    text = (workdir / "report.md").read_text()
    assert "upernet_vit_adapter_ti, joining lape" in text
    assert {path.stem for path in (workdir / "figures").iterdir()} >= {"curves", "images", "correlation_token"}


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(workdir, tmp_path):
    killed = runs.copy(workdir, tmp_path)
    shutil.rmtree(killed / "checkpoints" / "6")
    runs.train(killed, runs.load(CONFIG, **RUN | {"report": False}))
    assert runs.metrics(killed) == runs.metrics(workdir)
    resumed, whole = saved_state(killed), saved_state(workdir)
    assert resumed.keys() == whole.keys()
    for name in whole:
        assert resumed[name].tobytes() == whole[name].tobytes(), name


@pytest.mark.slow
def test_eight_devices_train_as_one(workdir, tmp_path):
    """Two images a device, whose BatchNorms see all sixteen."""
    _, lines = runs.train(tmp_path, runs.load(CONFIG, **RUN | {"report": False}), devices=8)
    expected = runs.metrics(workdir)
    assert runs.losses(lines) == pytest.approx(runs.losses(expected), rel=1e-5)
    for name in METRICS:
        assert lines[-1][name] == pytest.approx(expected[-1][name], abs=0.05), name  # some pixels fall to other sides
    state, whole = saved_state(tmp_path), saved_state(workdir)
    names = [name for name in whole if name.startswith(("params/", "collections/")) and not IDLE.fullmatch(name)]
    difference = sum(np.sum((state[name] - whole[name]) ** 2) for name in names)
    assert 0 < difference < 1e-6 * sum(np.sum(whole[name] ** 2) for name in names)


# ---- Commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_finds_the_numbers_of_training(workdir, tmp_path, capsys):
    with runs.on(1):
        args = runs.options(evaluate, workdir=workdir, step="last", out=tmp_path / "out", overlays="2")
        evaluate.main(from_json(workdir / "config.json"), args)
    found, expected = json.loads(capsys.readouterr().out), runs.metrics(workdir)[-1]
    assert {name: found[name] for name in METRICS} == pytest.approx({name: expected[name] for name in METRICS})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"iou.csv", "iou.png", "overlays.png"}


@pytest.mark.slow
def test_folded_it_segments_as_before(workdir):
    config = from_json(workdir / "config.json")
    with runs.on(1):
        mesh = sharding.make_mesh(config.mesh)
        found = trained.of_run(workdir, config, mesh=mesh)
        model, variables = found.model, found.variables
        folded, constants = port.fold(variables, model)
        source = TASKS["segment"].open_split(config, "val")
        results = [SceneEvaluator(m, config, mesh, source)(v) for m, v in ((model, variables), (folded, constants))]
    assert folded.joining == "folded"
    assert results[1] == pytest.approx(results[0], abs=0.02)


@pytest.mark.slow
def test_exported_folded_with_a_batch_of_any_size(workdir, tmp_path):
    config = from_json(workdir / "config.json")
    out = tmp_path / "m.stablehlo"
    args = runs.options(export, workdir=workdir, out=out, fold="true")
    with runs.on(1):
        export.main(config, args)
        found = trained.of_run(workdir, config, mesh=sharding.make_mesh(config.mesh))
        model, variables = found.model, found.variables
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    images = np.random.default_rng(1).integers(0, 256, (5, *model.input_shape), np.uint8)
    normal = normalise(jnp.asarray(images), config.data.mean, config.data.std)
    expected = quick.jit(lambda variables, x: model.apply(variables, x)[0])(variables, normal)
    np.testing.assert_allclose(program.call(images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_weights_go_out_and_in(workdir, tmp_path):
    out = tmp_path / "m.safetensors"
    args = runs.options(export, workdir=workdir, out=out)
    config = from_json(workdir / "config.json")
    with runs.on(1):
        export.main(config, args)
        found = trained.of_run(workdir, config, mesh=sharding.make_mesh(config.mesh))
        model, variables = found.model, found.variables
    again = port.load(out, model)
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(variables))


@pytest.mark.slow
def test_predict_and_visualize(workdir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, size in {"photo": (60, 90), "panorama": (20, 400)}.items():
        runs.write_png(tmp_path / "in" / f"{name}.png", rng.integers(0, 256, (*size, 1), np.uint8))
    args = runs.options(predict, [tmp_path / "in"], workdir=workdir, out=tmp_path / "out")
    with runs.on(1):
        predict.main(from_json(workdir / "config.json"), args)
        visualize.main([f"--workdir={workdir}", f"--out={tmp_path / 'seen'}", "--overlays=2"])
    for name, size in {"photo": (90, 60), "panorama": (400, 20)}.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.size == size
    said = capsys.readouterr().out
    assert "not measured on images: a ViT-Adapter adds to the tokens between its blocks" in said
    names = {path.name for path in (tmp_path / "seen").iterdir()}
    assert names >= {"overlays.png", "correlation_token.png", "locality.png", "numbers.npz"}
    assert "lambda.png" not in names


# ---- Other forms of the same step ------------------------------------------------------------------------------------


@functools.cache
def gradient(**changed):
    """As one vector, and the loss; of blocks that are two by two."""
    config = runs.load(CONFIG, **RUN, **{"model.depth": 8})
    model = dataclasses.replace(setup.build_model(config, 11), **changed, parent=None, name=None)
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(0.05, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, model.variable_shapes())
    size = config.data.image_size
    batch = {
        "image": rng.standard_normal((4, size, size, 3)).astype(np.float32),
        "label": rng.integers(-2, 11, (4, size, size)).astype(np.int32),
        "mask": np.float32([1, 1, 1, 0]),
    }
    step = quick.jit(jax.grad(TASKS["segment"].loss(config, model), has_aux=True))
    collections = {"batch_stats": variables["batch_stats"]}
    tree, (sums, _) = step(variables["params"], collections, batch, jax.random.key(0))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]), float(sums["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"unroll": 2, "remat": "attention"}, {"dtype": jnp.bfloat16}], ids=str)
def test_the_gradient_in_other_forms(changed):
    """Unrolled and with remat it is the same; in bfloat16 it is near."""
    (expected, loss), (near, other_loss) = gradient(), gradient(**changed)
    bound = 0.1 if "dtype" in changed else 1e-4
    assert other_loss == pytest.approx(loss, rel=bound)
    assert np.linalg.norm(near - expected) < bound * np.linalg.norm(expected)
