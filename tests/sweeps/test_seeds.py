"""Seeds that train together: each is the run that it would be by itself, whatever happens to the others."""

import contextlib
import json
import re
import shutil
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.sweeps import seeds
from lape_jax.tasks.config import from_json
from lape_jax.train import feed, setup, trained
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.signals import StopRequest
from lape_jax.train.writers import Console
from tests import quick, runs

SEEDS = (3, 7)
# Random are weights, order, flips and stochastic depth.
STEPS = {
    "model.drop_path": 0.2,
    "augment.flip": True,
    "optimizer.layer_decay": 0.8,
    "ema_decay": 0.9,
    "total_steps": 5,
    "warmup_steps": 2,
    "log_steps": 1,
    "eval_steps": 3,
    "checkpoint_steps": 3,
    "report": False,
}
MIXED = {
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "mix_steps": 2,
    "augment.erase_prob": 0.5,
    "data.scale": (0.5, 1.0),
    "optimizer.accumulate": 2,
}
# What adds the same to all logits of a softmax, or comes before a BatchNorm, has no gradient but rounding, which Adam
# makes as large as any other.
NOISE = re.compile(r".*(attn/qkv/bias|mlp/(fc1|conv|fc2)/bias)")


def train(directory, numbers=SEEDS, file=runs.DIGITS, **changes):
    with runs.on(1), mock.patch.object(seeds, "_RUNS_ONCE", quick.COMPILER_OPTIONS):
        return seeds.train(runs.load(file, **STEPS | changes), numbers, directory, Console(enabled=False))


def saved_state(workdir):
    """Arrays by name of the last checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, num_classes=10)
    mesh = sharding.make_mesh(config.mesh)
    state = trained.restore(workdir, config, model, mesh, trained.LAST, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(jax.device_get(state)).items()}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The directory of seeds that trained together, and what they came to; to be copied before anything is changed."""
    directory = tmp_path_factory.mktemp("together") / "cell"
    return directory, train(directory)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The directory of seeds that were stopped after two steps."""
    directory = tmp_path_factory.mktemp("interrupted") / "cell"
    with stopped_after(2):
        assert train(directory) is None
    return directory


@contextlib.contextmanager
def stopped_after(steps, name="SIGTERM"):
    """Lets runs be stopped where they ask for the so many-th time whether they should."""
    due = StopRequest.due
    asked = []

    def fake(self):
        asked.append(self)
        if len(asked) == steps + 1:
            signal.raise_signal(signal.Signals[name])
        return due(self)

    with mock.patch.object(StopRequest, "due", fake):
        yield


def assert_same(directory, results, alone, seed, config):
    """Trains the seed alone, too."""
    expected_results, expected = runs.train(alone, config)
    workdir = seeds.seed_dir(directory, seed)
    found = runs.metrics(workdir)
    assert [list(line) for line in found] == [list(line) for line in expected]
    assert [line["step"] for line in found] == [1, 2, 3, 3, 4, 5, 5]
    for line, expected_line in zip(found, expected, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-5)
    assert results[seed] == pytest.approx(expected_results, rel=1e-5)

    end, expected_end = saved_state(workdir), saved_state(alone)
    assert end.keys() == expected_end.keys()
    for name in end:
        if not NOISE.fullmatch(name):
            np.testing.assert_allclose(end[name], expected_end[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_one_is_the_run_that_it_would_be_alone(together, tmp_path):
    assert_same(*together, tmp_path, 7, runs.load(**STEPS, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "changes", "compared"),
    [("", MIXED, SEEDS), (",model=ceit_ti", {}, SEEDS[1:]), (",model=swin_t", {}, SEEDS[1:])],
)
def test_all_are_the_runs_that_they_would_be_alone(args, changes, compared, tmp_path):
    file = runs.DIGITS + args
    results = train(tmp_path / "together", file=file, **changes)
    for seed in compared:
        config = runs.load(file, **STEPS | changes, seed=seed)
        assert_same(tmp_path / "together", results, tmp_path / f"alone_{seed}", seed, config)


@pytest.mark.slow
def test_each_leaves_a_workdir(together):
    directory, results = together
    losses = {metrics["val/loss"] for metrics in results.values()}
    assert len(losses) == len(SEEDS)
    for seed in SEEDS:
        workdir = seeds.seed_dir(directory, seed)
        assert from_json(workdir / "config.json") == runs.load(**STEPS, seed=seed)
        assert {path.name.split(".out.")[0] for path in workdir.iterdir()} == {
            *("config.json", "data.json", "metrics.jsonl", "events", "checkpoints")
        }
        checkpoints = Checkpoints(workdir, read_only=True)
        assert checkpoints.steps() == [5]
        assert checkpoints.best_step() == 5
        assert saved_state(workdir)["step"] == 5
        assert runs.metrics(workdir)[-1] == {"step": 5, **results[seed]}


@pytest.mark.slow
def test_resumed_they_end_with_the_same_bits(together, interrupted, tmp_path):
    directory, results = together
    again = runs.copy(interrupted, tmp_path)
    assert seeds.begun(again) == list(SEEDS)
    assert Checkpoints(again / "together", read_only=True).steps() == [2]
    for seed in SEEDS:
        assert Checkpoints(seeds.seed_dir(again, seed), read_only=True).steps() == []
    assert train(again) == results
    for seed in SEEDS:
        before, now = (seeds.seed_dir(where, seed) for where in (directory, again))
        assert (now / "metrics.jsonl").read_bytes() == (before / "metrics.jsonl").read_bytes()
        expected, found = saved_state(before), saved_state(now)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint(interrupted, tmp_path):
    again = runs.copy(interrupted, tmp_path)
    shutil.rmtree(again / "together" / "checkpoints" / "2")
    with stopped_after(0, "SIGINT"), pytest.raises(KeyboardInterrupt):
        train(again)
    assert Checkpoints(again / "together", read_only=True).steps() == [0]


@pytest.mark.slow
def test_until_it_is_discarded_the_end_can_be_had_again(together, tmp_path):
    directory, results = together
    again = runs.copy(directory, tmp_path)
    # As if it had died while the workdirs were filled.
    shutil.rmtree(seeds.seed_dir(again, SEEDS[1]) / "checkpoints")
    with mock.patch.object(feed.Resident, "run", side_effect=AssertionError("it trains")):
        assert train(again) == results
    for seed in SEEDS:
        workdirs = (seeds.seed_dir(where, seed) for where in (directory, again))
        before, now = ((workdir / "metrics.jsonl").read_bytes() for workdir in workdirs)
        assert now == before
        assert saved_state(seeds.seed_dir(again, seed))["step"] == 5

    seeds.discard(again)
    assert {path.name for path in again.iterdir()} == {f"seed_{seed}" for seed in SEEDS}
    assert seeds.begun(again) == []
    seeds.discard(again)


@pytest.mark.slow
def test_what_is_half_removed_is_not_gone_on_with(interrupted, tmp_path):
    again = runs.copy(interrupted, tmp_path)
    with mock.patch.object(shutil, "rmtree", side_effect=KeyboardInterrupt), contextlib.suppress(KeyboardInterrupt):
        seeds.discard(again)
    with contextlib.suppress(KeyboardInterrupt), mock.patch.object(shutil, "rmtree") as removed:
        removed.side_effect = [None, KeyboardInterrupt]
        seeds.discard(again)
    assert (again / "together.done" / "checkpoints").exists()
    assert seeds.begun(again) == []
    seeds.discard(again)
    assert not (again / "together.done").exists()


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("numbers", "changes"), quick.first(1, [((3, 7, 8), {}), (SEEDS, {"optimizer.lr": 0.5})]))
def test_what_has_begun_otherwise_is_left_as_it_is(interrupted, numbers, changes, tmp_path):
    again = runs.copy(interrupted, tmp_path)
    before = files(again)
    with pytest.raises(
        UserError, match=r"together' holds what has begun with other seeds or another config: go on with"
    ):
        train(again, numbers, **changes)
    assert files(again) == before


def test_what_has_begun_without_a_checkpoint_is_begun_again(interrupted, tmp_path):
    again = runs.copy(interrupted, tmp_path)
    shutil.rmtree(again / "together" / "checkpoints")
    assert seeds.begun(again) == []
    with mock.patch.object(seeds._Runs, "create", side_effect=MemoryError), pytest.raises(MemoryError):
        train(again, (3,), **{"optimizer.lr": 0.5})
    assert json.loads((again / "together" / "cell.json").read_text())["seeds"] == [3]


@pytest.mark.slow
def test_a_workdir_that_holds_a_run_is_left_as_it_is(together, tmp_path):
    again = runs.copy(together[0], tmp_path)
    seeds.discard(again)
    before = files(again)
    with pytest.raises(UserError, match=r"seed_7' holds a run already: remove it, or use another directory"):
        train(again, (5, 7))
    seeds.discard(again)
    assert files(again) == before


def test_other_classes_are_refused(interrupted, tmp_path):
    again = runs.copy(interrupted, tmp_path)
    path = seeds.seed_dir(again, SEEDS[0]) / "data.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "classes": ["a", *data["classes"][1:]]}))
    with pytest.raises(UserError, match="holds a run on other classes: 'a' was there"):
        train(again)


@contextlib.contextmanager
def going_wrong(numbers, step):
    """Lets the losses of these seeds become NaN in a step."""
    real = setup.update

    def update(*args, seed):
        one = real(*args, seed=seed)

        def broken(state, batch):
            bad = (state.step == step) & jnp.isin(seed, jnp.array(numbers))
            params = jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), state.params)
            return one(state.replace(params=params), batch)

        return broken

    with mock.patch.object(setup, "update", update):
        yield


@pytest.mark.slow
def test_one_that_goes_wrong_leaves_the_others_alone(together, tmp_path):
    with going_wrong([7], step=1):
        results = train(tmp_path)
    assert results[7] == {"error": "the loss or its gradient became NaN or infinite in step 1"}
    assert results[3] == pytest.approx(together[1][3], rel=1e-5)
    directories = [seeds.seed_dir(tmp_path, seed) for seed in SEEDS]
    assert [Checkpoints(workdir, read_only=True).steps() for workdir in directories] == [[5], []]
    losses = [line["train/loss"] for line in runs.metrics(directories[1]) if "train/loss" in line]
    assert losses[0] is not None
    assert losses[1:] == [None] * 4


def test_if_all_go_wrong_it_ends(interrupted, tmp_path):
    again = runs.copy(interrupted, tmp_path)

    def check(self, state, step):
        self.wrong = ["one", "other"]

    with mock.patch.object(seeds._Runs, "check", check):
        assert train(again) == {3: {"error": "one"}, 7: {"error": "other"}}
    assert [line["step"] for line in runs.metrics(seeds.seed_dir(again, 3))] == [1, 2]
    assert Checkpoints(seeds.seed_dir(again, 3), read_only=True).steps() == []


def test_the_order_of_each_seed():
    config = runs.load(steps_per_dispatch=4)
    indices = seeds._batch_indices(config, 150, SEEDS)
    for step in (0, 1, 5, 4, 3, 2, 9):
        expected = [setup.batch_indices(config, 150, step, seed) for seed in SEEDS]
        np.testing.assert_array_equal(indices(step), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"mesh.data": 1}, ""),
        ({"data.resident": False}, "its images do not lie on the device (config.data.resident)"),
        ({"mesh.data": 2}, "it asks for several devices (config.mesh)"),
        ({"mesh.fsdp": 8}, "it asks for several devices (config.mesh)"),
        ({"init.weights": "x"}, "it needs the weights of another model (config.distill, config.init)"),
        ({"distill.teacher": "x"}, "it needs the weights of another model (config.distill, config.init)"),
    ],
)
def test_what_may_train_together(changes, reason):
    config = runs.load()
    for key, value in changes.items():
        group, _, name = key.partition(".")
        config[group][name] = value
    assert seeds.why_not(config) == reason
