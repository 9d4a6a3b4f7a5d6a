"""Runs that segment, from end to end: what they leave, what must not change their numbers, and mistakes of users."""

import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from lape_jax import cli, evaluate, port
from lape_jax import main as command
from lape_jax.config.reading import to_json
from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.port.params import flatten
from lape_jax.tasks import TASKS
from lape_jax.tasks.config import base, from_json
from lape_jax.tasks.segment.digits import DigitScenes
from lape_jax.tasks.segment.scene import IGNORE, PADDING
from lape_jax.train import optim, setup, trained
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from tests import runs
from tests.port.tiny import random_variables

MASK, LINEAR = (f"{runs.ROOT}/configs/segmenter_ti_{decoder}_ade20k.py:debug" for decoder in ("mask", "linear"))
SMALL = {"dtype": "float32", "model.patch_size": 8, "model.remat": "none", "eval_batch_size": 8}
# Three epochs, in which all that is random takes part: crops, colours, stochastic depth. The checkpoint
# after step 4 lies between two log lines.
RUN = SMALL | {
    "total_steps": 6,
    "log_percent": 50,
    "eval_percent": 66,
    "checkpoint_percent": 66,
    "batch_size": 40,
    "model.drop_path": 0.2,
    "model.decoder_drop_path": 0.2,
    "optimizer.lr": 2e-3,
    "optimizer.nesterov": True,
    "optimizer.layer_decay": 0.9,
    "ema_decay": 0.9,
    "segment.mean_over": "valid",
}
METRICS = [f"val/{ema}{name}" for ema in ("", "ema_") for name in ("miou", "mean_accuracy", "pixel_accuracy")]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of the run that the others are compared with: one device, not interrupted, with a report."""
    path = tmp_path_factory.mktemp("whole") / "tiny"
    runs.train(path, runs.load(MASK, **RUN, report=True))
    return path


def saved_state(workdir, step):
    """Arrays by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, len(DigitScenes.classes))
    with runs.on(1):
        mesh = sharding.make_mesh(config.mesh)
        state = trained.restore(workdir, config, model, mesh, step, sharding.REPLICATED).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(state).items()}


# ---- What it leaves --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_metrics(workdir):
    lines = runs.metrics(workdir)
    assert [line["step"] for line in lines] == [3, 4, 6, 6]
    training, evaluated = ([line for line in lines if name in line] for name in ("train/loss", "val/miou"))
    names = ["step", "train/loss", "train/pixel_accuracy", "train/grad_norm", "lr", "epoch"]
    assert [list(line) for line in training] == 2 * [names]
    assert 1 < training[0]["train/loss"] < np.log(11) + 0.5  # the last LayerNorm spreads the logits from the start
    assert training[1]["train/loss"] < training[0]["train/loss"] - 0.1
    expected = [1e-4 + (2e-3 - 1e-4) * (1 - step / 6) ** 0.9 for step in (2, 5)]
    assert [line["lr"] for line in training] == pytest.approx(expected, rel=1e-5)
    assert [line["epoch"] for line in training] == [1.5, 3.0]
    for line in evaluated:
        assert {*line} == {"step", *METRICS, "val/examples", "val/ema_examples"}
        assert (line["val/examples"], line["val/ema_examples"]) == (29, 29)
        assert all(0 < line[name] < 100 for name in METRICS)
    assert evaluated[-1]["val/pixel_accuracy"] > 50  # nearly all is paper


@pytest.mark.slow
def test_the_average_is_evaluated_beside_the_weights(workdir):
    state, last = saved_state(workdir, 6), runs.metrics(workdir)[-1]
    assert last["val/ema_miou"] != last["val/miou"]
    names = [name.removeprefix("ema/") for name in state if name.startswith("ema/")]
    assert names == [name for name in state if name.startswith("params/")]
    assert all((state[f"ema/{name}"] != state[name]).any() for name in names)


@pytest.mark.slow
def test_report(workdir):
    text, last = (workdir / "report.md").read_text(), runs.metrics(workdir)[-1]
    assert text.startswith("# tiny\n")
    assert "segmenter_ti_mask, joining lape" in text
    for name in METRICS:
        assert f"| {name} | {last[name]:.6g} |" in text
    figures = {path.stem for path in (workdir / "figures").iterdir()}
    assert figures == {"curves", "images", "correlation_token", "correlation_overall"}
    for name in figures:
        assert f"](figures/{name}.png)" in text
        with Image.open(workdir / "figures" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    best = max((line for line in runs.metrics(workdir) if "val/miou" in line), key=lambda line: line["val/miou"])
    assert Checkpoints(workdir, read_only=True).best_step() == best["step"]


# ---- What must not change the numbers --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(workdir, tmp_path):
    killed = runs.copy(workdir, tmp_path)
    shutil.rmtree(killed / "checkpoints" / "6")
    runs.train(killed, runs.load(MASK, **RUN))
    assert runs.metrics(killed) == runs.metrics(workdir)
    resumed, whole, start = saved_state(killed, 6), saved_state(workdir, 6), saved_state(workdir, 4)
    assert resumed.keys() == whole.keys()
    assert any("trace" in name for name in whole)  # SGD's momentum
    for name in whole:
        assert resumed[name].tobytes() == whole[name].tobytes(), name
    assert start["sums/steps"] == 1
    assert all((start[name] != whole[name]).any() for name in whole if name.startswith("params/"))


@pytest.mark.slow
def test_what_may_change_when_a_run_goes_on(workdir):
    changed = {"model.decoder_dropout": 0.5, "model.decoder_drop_path": 0.0, "segment.stride": 32}
    config = runs.load(MASK, **RUN | changed, report=True)
    assert setup.compare_with_workdir(config, setup.build_model(config, 11), workdir) == [
        "config.model.decoder_drop_path was 0.2 so far, and is 0.0 from here on",
        "config.model.decoder_dropout was 0.0 so far, and is 0.5 from here on",
        "config.segment.stride was 24 so far, and is 32 from here on",
    ]


@pytest.mark.slow
def test_eight_devices_train_as_one(workdir, tmp_path):
    seldom = {"eval_percent": 100, "checkpoint_percent": 100}
    _, lines = runs.train(tmp_path, runs.load(MASK, **RUN | seldom), devices=8)
    expected = [line for line in runs.metrics(workdir) if line["step"] != 4]
    assert [line["step"] for line in lines] == [line["step"] for line in expected] == [3, 6, 6]
    assert runs.losses(lines) == pytest.approx(runs.losses(expected), rel=1e-6)
    for name in ("train/pixel_accuracy", *METRICS):
        found, wanted = ([line[name] for line in run if name in line] for run in (lines, expected))
        assert found == pytest.approx(wanted, abs=0.02), name  # a pixel or two may fall to the other side
    state, whole = saved_state(tmp_path, 6), saved_state(workdir, 6)
    names = [name for name in whole if name.startswith("params/")]
    difference = sum(np.sum((state[name] - whole[name]) ** 2) for name in names)
    assert 0 < difference < 1e-10 * sum(np.sum(whole[name] ** 2) for name in names)  # 0: the very same program


def uneven_batch(size=32):
    """Images with very different numbers of labels: none known, none at all, few, unreadable, and all."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (8, size, size, 3), np.uint8), rng.integers(0, 11, (8, size, size))
    label[0] = IGNORE
    label[1, 5:] = label[1, :, 7:] = PADDING
    label[2, 1:] = IGNORE
    label[3] = PADDING
    image[4], label[4] = 0, 0
    return {"image": image, "label": label.astype(np.int32), "mask": np.float32([1, 1, 1, 1, 0, 1, 1, 1])}


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch():
    """Although the micro-batches have very different numbers of labels."""
    found, batch = [], jax.tree.map(jax.numpy.asarray, uneven_batch())
    settings = {"batch_size": 8, "segment.mean_over": "valid", "model.drop_path": 0.0}
    with runs.on(1):
        for accumulate in (1, 2):
            config = runs.load(LINEAR, **SMALL, **settings, **{"optimizer.accumulate": accumulate})
            model = setup.build_model(config, 11)
            tx = optim.make(config.optimizer, model.param_shapes(), lambda step: 0.1, model.no_weight_decay)
            shapes = jax.eval_shape(states.initialiser(model, tx, ema=False, task=TASKS["segment"]), jax.random.key(0))
            start = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, 0, leaf.dtype), shapes)
            start = start.replace(params=random_variables(model)["params"])
            update = setup.update(config, model, 0, tx, sharding.make_mesh(config.mesh))
            found.append(jax.device_get(jax.jit(update)(start, batch)))
    one, two = found
    labelled = int((batch["label"][batch["mask"] > 0] >= 0).sum())
    assert one.sums["pixels"] == two.sums["pixels"] == labelled == 5 * 7 + 32 + 3 * 32 * 32
    assert one.sums["examples"] == two.sums["examples"] == labelled
    wanted, others = (rules.flat_names({"params": end.params, "sums": end.sums}) for end in found)
    for name, value in wanted.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


# ---- Weights to start from -------------------------------------------------------------------------------------------


def classifier_workdir(path):
    """Of a classifier of 16 x 16 pixels, joined the default way, that has not been trained."""
    path.mkdir()
    config = base()
    config.model.update({"name": "deit_ti", "join": "default", "width": 16, "depth": 2, "heads": 2, "patch_size": 8})
    config.data.image_size = 16
    config.total_steps = config.log_steps = config.eval_steps = config.checkpoint_steps = 1
    config.warmup_steps = 0
    model = setup.build_model(config, 10)
    tx = optim.make(config.optimizer, model.param_shapes(), float, model.no_weight_decay)
    with runs.on(1):
        state = jax.jit(states.initialiser(model, tx, ema=False, task=TASKS["classify"]))(jax.random.key(0))
    state = state.replace(params=random_variables(model)["params"])
    (path / "config.json").write_text(to_json(config))
    (path / workdirs.DATA).write_text(json.dumps({"train": 1, "val": 1, "classes": [*map(str, range(10))]}))
    with Checkpoints(path) as checkpoints:
        checkpoints.save(1, state, {"val/top1": 10.0})
        checkpoints.wait()
    return flatten({"params": state.params})


@pytest.mark.slow
def test_a_run_begins_with_the_encoder_of_a_classifier(tmp_path, caplog):
    theirs = classifier_workdir(tmp_path / "classifier")
    settings = {"total_steps": 1, "batch_size": 8, "optimizer.lr": 1e-12, "optimizer.min_lr": 0}
    config = runs.load(LINEAR, **SMALL, **settings, **{"init.weights": tmp_path / "classifier"})
    nothing = dict.fromkeys([*METRICS, "val/examples"], 0.0)
    with mock.patch.object(TASKS["segment"], "evaluator", return_value=lambda _: nothing):
        runs.train(tmp_path / "run", config)
    found = saved_state(tmp_path / "run", 1)
    lines = [line.removeprefix(f"from {tmp_path}/classifier, ").partition(": ") for line in caplog.messages]
    said = {kind: set(names.split(", ")) for kind, _, names in lines}
    assert list(said) == ["loaded", "resized", "initialised", "dropped"]
    assert said["resized"] == {"pos_embed"}
    assert said["initialised"] == {
        "blocks/pe_norm/scale",
        "blocks/pe_norm/bias",
        "decoder/head/kernel",
        "decoder/head/bias",
    }
    assert said["dropped"] == {"head/kernel", "head/bias"}
    assert said["loaded"] == {*theirs} - {"pos_embed"} - said["dropped"]
    for path in said["loaded"]:
        np.testing.assert_allclose(found[f"params/{path}"], theirs[path], rtol=1e-5, atol=1e-7, err_msg=path)
    np.testing.assert_allclose(found["params/blocks/pe_norm/scale"], theirs["blocks/norm1/scale"], rtol=1e-5)
    assert found["params/pos_embed"].shape == (17, 16)
    np.testing.assert_allclose(found["params/pos_embed"][0], theirs["pos_embed"][0], rtol=1e-5)


# ---- Mistakes --------------------------------------------------------------------------------------------------------


def run(capsys, workdir, file, *overrides):
    """The exit code of the command that trains, and what it wrote to stderr."""
    argv = [f"--config={file}", f"--workdir={workdir}", *(f"--config.{override}" for override in overrides)]
    with runs.on(1):
        code = cli.run(command.main, argv, required=("config", "workdir"))
    return code, capsys.readouterr().err


@pytest.fixture
def quiet(monkeypatch):
    """The logs are left as they are: `quiet_logs` is for a process of its own."""
    monkeypatch.setattr(cli, "quiet_logs", lambda: None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segment.stride=33", "config.segment.stride is 33, more than the window, config.data.image_size = 32: "),
        ("segment.stride=0", "config.segment.stride is 0: it must be at least 1"),
        ("segment.scale=(32,64)", "config.segment.scale is (32, 64): it must be a pair (longer, shorter)"),
        ("segment.scale_range=(2.0,0.5)", "config.segment.scale_range is (2.0, 0.5): it must be a pair (smallest, "),
        ("segment.scales=()", "config.segment.scales is (): it must be a tuple of numbers above 0"),
        ("segment.max_class=75", "config.segment.max_class is 75.0: it must be above 0 and at most 1"),
        ("segment.mean_over=some", "config.segment.mean_over: "),
        ("data.resident=true", "config.data.resident is True: task=segment has no use for it; leave it out"),
        ("augment.mixup=0.8", "config.augment.mixup is 0.8: it is for task=classify; leave it out"),
        ("loss.label_smoothing=0.1", "config.loss.label_smoothing is 0.1: it is for task=classify; leave it out"),
        ("data.scale=(0.5,1.0)", "config.data.scale is (0.5, 1.0): it is for task=classify; leave it out"),
        ("data.channels=1", "config.data.mean has 3 values, but config.data.channels is 1"),
        ("data.source=arrays", "config.data.source: "),
        ("data.source=ade20k", "config.data.path is empty: data.source=ade20k needs it"),
        ("data.image_size=36", "config.model: image_size=36 is not divisible by patch_size=8"),
        ("task=classify", "config.task is 'classify', but segmenter_ti_mask gives a class to each pixel"),
        ("batch_size=120", "batch_size is 120, but must lie between 1 and the 119 training examples"),
    ],
)
def test_settings_that_do_not_fit(quiet, tmp_path, capsys, override, message):
    code, err = run(capsys, tmp_path / "run", MASK, "model.patch_size=8", override)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_a_classifier_does_not_segment():
    config = base()
    config.task = "segment"
    with pytest.raises(UserError, match=r"config.task is 'segment', but deit_ti gives a class to each image"):
        setup.build_model(config, 10)


def write_scenes(root, **bad):
    """Four scenes of 40 x 36 pixels and three classes for training and for validation; `bad` masks by split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(rng.integers(0, 256, (36, 40, 3), np.uint8)).save(root / "images" / split / f"{index}.png")
            mask = Image.fromarray(rng.integers(0, 3, (36, 40), np.uint8))
            (bad.get(split, mask) if index == 2 else mask).save(root / "masks" / split / f"{index}.png")
    (root / "classes.txt").write_text("sky\nsea\nland\n")
    splits = ["data.train_split=train", "data.val_split=val"]
    return ["data.source=folder", f"data.path={root}", *splits, "model.patch_size=8", "model.depth=1", "batch_size=4"]


def palette_mask(value):
    """All 0 but one pixel."""
    indices = np.zeros((36, 40), np.uint8)
    indices[7, 9] = value
    mask = Image.fromarray(indices)
    mask.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return mask


MUST = "but must hold 0 to 2 for the 3 classes, and 255 for none"
BAD = {
    "value": (
        palette_mask(3),
        f"has the value 3 in row 7, column 9 (1 such pixels), {MUST}; if 0 is what belongs to no class, "
        "as the background, it needs a name, too: the first",
    ),
    "size": (
        Image.fromarray(np.zeros((40, 36), np.uint8)),
        "has 36 x 40 pixels (width x height), but the image 40 x 36: they must be equal",
    ),
    "colours": (
        palette_mask(2).convert("RGB"),
        "is a PNG of mode RGB (with colours or transparency), but must hold class indices: a grey or palette PNG; "
        "replace each class's colour by its index, as uint8 (h, w), and save that: Image.fromarray(indices)",
    ),
}


def test_a_mask_that_is_wrong_ends_training(quiet, tmp_path, capsys):
    mask, message = BAD["value"]
    overrides = write_scenes(tmp_path / "data", train=mask)
    code, err = run(capsys, tmp_path / "run", LINEAR, *overrides)
    assert (code, err) == (2, f"error: the mask of {tmp_path}/data/images/train/2.png {message}\n")
    assert Checkpoints(tmp_path / "run", read_only=True).steps() in ([], [0])


@pytest.mark.parametrize("kind", BAD)
def test_a_mask_that_is_wrong_ends_an_evaluation(quiet, tmp_path, capsys, kind):
    mask, message = BAD[kind]
    overrides = write_scenes(tmp_path / "data", val=mask)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*")}
    model = setup.build_model(runs.load(LINEAR, **dict(override.split("=") for override in overrides)), 3)
    port.save(tmp_path / "weights.npz", random_variables(model), model)
    argv = [f"--weights={tmp_path}/weights.npz", f"--config={LINEAR}", *(f"--config.{one}" for one in overrides)]
    with runs.on(1):
        code = cli.run(evaluate.main, argv, options=evaluate.options)
    assert (code, capsys.readouterr().err) == (2, f"error: the mask of {tmp_path}/data/images/val/2.png {message}\n")
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*")} == before
