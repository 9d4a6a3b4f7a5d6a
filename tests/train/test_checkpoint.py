"""Checkpoints that survive: kills, every kind of damage, donated buffers, other meshes, and other models."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lape_jax.errors import UserError
from lape_jax.train import record
from lape_jax.train.checkpoint import Checkpoints

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_learning_rate(lambda t: 0.1))


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    ema: dict
    opt_state: tuple


def make_state(step=0, rows=16):
    rng = np.random.default_rng(step)
    params = {
        "pos_embed": jnp.asarray(rng.normal(size=(rows, 64)), jnp.float32),
        "blocks": {"kernel": jnp.asarray(rng.normal(size=(2, 64, 64)), jnp.float32)},
        "gain": jnp.float32(rng.normal()),
    }
    opt_state = TX.init(params)
    opt_state = jax.tree.map(lambda x: jnp.full_like(x, step) if x.ndim == 0 else x + rng.normal(), opt_state)
    return State(jnp.int32(step), params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), opt_state)


def abstract(state):
    return jax.eval_shape(lambda: state)


def assert_bits_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_all(workdir, steps, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step, top1 in steps.items():
            checkpoints.save(step, make_state(step), None if top1 is None else {"val/top1": top1, "val/loss": 1.0})


def test_comes_back_bit_identical_with_its_types(tmp_path):
    save_all(tmp_path, {10: 0.5, 20: None})
    state, step = Checkpoints(tmp_path).restore(abstract(make_state()))
    assert step == 20
    assert isinstance(state, State)
    assert state.opt_state[1].count.dtype == jnp.int32
    assert_bits_equal(state, make_state(20))
    state, step = Checkpoints(tmp_path).restore(abstract(make_state()), step=10)
    assert step == 10
    assert_bits_equal(state, make_state(10))


def test_nan_and_signed_zero_keep_their_bits(tmp_path):
    bits = np.array([0x7FC00001, 0x80000000, 0x7F800000, 1], np.uint32)
    state = {"x": jnp.asarray(bits.view(np.float32))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        restored, step = checkpoints.restore(abstract(state))
    assert step == 0
    np.testing.assert_array_equal(np.asarray(restored["x"]).view(np.uint32), bits)


def test_nothing_saved_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())) is None
        assert checkpoints.steps() == []
        assert checkpoints.best_step() is None
    with Checkpoints(tmp_path / "absent", read_only=True) as checkpoints:
        assert checkpoints.restore(abstract(make_state())) is None
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        Checkpoints(tmp_path).restore(abstract(make_state()), step=7)


def test_keeps_the_last_and_the_best_also_after_a_restart(tmp_path):
    save_all(tmp_path, {1: 0.3, 2: 0.9, 3: 0.9, 4: None, 5: float("nan"), 6: 0.2}, keep=2)
    assert Checkpoints(tmp_path).steps() == [2, 5, 6]  # of equals the first is the best; no metric is never best
    assert Checkpoints(tmp_path).best_step() == 2
    save_all(tmp_path, {7: 0.1, 8: None}, keep=2)
    assert Checkpoints(tmp_path).steps() == [2, 7, 8]
    save_all(tmp_path, {9: 0.95, 10: 0.0, 11: 0.0}, keep=1)
    assert Checkpoints(tmp_path).steps() == [9, 11]


def test_saving_a_step_again_changes_nothing(tmp_path):
    save_all(tmp_path, {5: 0.5})
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save(5, make_state(6))
        assert checkpoints.save(6, make_state(6))
        assert not checkpoints.save(6, make_state(7))
    assert_bits_equal(Checkpoints(tmp_path).restore(abstract(make_state()), step=5)[0], make_state(5))


def test_the_saved_state_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    big = jnp.arange(500_000, dtype=jnp.float32)
    state = {"big": big, "more": [big + i for i in range(4)]}
    jax.block_until_ready(state)
    with Checkpoints(tmp_path) as checkpoints:
        for i in (1, 2, 3):
            before = jax.tree.map(lambda x: np.array(x, copy=True), state)
            checkpoints.save(i, state)
            for _ in range(3):
                state = step(state)
            jax.block_until_ready(state)
            restored, _ = checkpoints.restore(abstract(state), step=i)
            assert_bits_equal(restored, before)
            state = jax.tree.map(lambda x, y: jnp.asarray(x + y), before, restored)


def test_restores_onto_other_meshes(tmp_path):
    devices = np.array(jax.devices())
    specs = {"a": PartitionSpec("x", "y"), "b": PartitionSpec(None, "y"), "c": PartitionSpec(), "n": PartitionSpec()}
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(8, 16)), "b": rng.normal(size=(3, 8)), "c": rng.normal(size=5), "n": np.array(7)}
    values = {k: v.astype(np.int32 if k == "n" else np.float32) for k, v in values.items()}
    meshes = [Mesh(d, ("x", "y")) for d in (devices.reshape(8, 1), devices[:1].reshape(1, 1), devices.reshape(4, 2))]
    shardings = [{k: NamedSharding(mesh, spec) for k, spec in specs.items()} for mesh in meshes]
    state = jax.device_put(values, shardings[0])
    for i, where in enumerate(shardings[1:], start=1):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(i, state)
        shape = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, where)
        state, _ = Checkpoints(tmp_path).restore(shape)
        assert {k: x.sharding for k, x in state.items()} == where
        assert_bits_equal(state, values)


def data_files(directory):
    return sorted((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(step):
    largest = data_files(step / "state")[-1]
    os.truncate(largest, largest.stat().st_size // 2)


def flip_byte(step):
    largest = data_files(step / "state")[-1]
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)


def flip_record_byte(step):
    (path,) = (p for p in data_files(step / "record") if p.name == "metadata")
    data = path.read_bytes()
    assert data.count(b"[16, 64]") > 1
    path.write_bytes(data.replace(b"[16, 64]", b"[17, 64]", 1))  # must not pass for another model


def delete_metadata(step):
    (step / "state" / "_METADATA").unlink()


def delete_manifest(step):
    (step / "state" / "manifest.ocdbt").unlink()


def delete_record(step):
    shutil.rmtree(step / "record")


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def zero(step):
    for path in data_files(step):
        path.write_bytes(bytes(path.stat().st_size))


def swap_state(step):  # whole and readable, but not what the record says
    shutil.rmtree(step / "state")
    other = "10" if step.name == "20" else "20"
    shutil.copytree(step.parent / other / "state", step / "state")


DAMAGES = [
    truncate,
    flip_byte,
    flip_record_byte,
    delete_metadata,
    delete_manifest,
    delete_record,
    empty,
    zero,
    swap_state,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, capfd, damage):
    save_all(tmp_path, {10: None, 20: None})
    damage(tmp_path / "checkpoints" / "20")
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.restore(abstract(make_state()))[1] == 10
        assert reader.steps() == [10, 20]  # a reader moves nothing
    caplog.clear()
    with Checkpoints(tmp_path) as checkpoints:
        state, step = checkpoints.restore(abstract(make_state()))
        assert step == 10
        assert_bits_equal(state, make_state(10))
        (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert message.startswith("checkpoint 20 is passed over for 10, it is now corrupt-20: ")
        assert "\n" not in message
        assert (tmp_path / "checkpoints" / "corrupt-20").is_dir()
        assert checkpoints.save(20, make_state(20))  # the same step again
    with Checkpoints(tmp_path) as checkpoints:
        state, step = checkpoints.restore(abstract(make_state()))
    assert step == 20
    assert_bits_equal(state, make_state(20))
    assert capfd.readouterr().err == ""  # nothing of Orbax's on the console


@pytest.mark.parametrize("damage", [flip_byte, flip_record_byte, empty, zero])
def test_damage_to_an_older_one_disturbs_nothing(tmp_path, caplog, damage):
    save_all(tmp_path, {10: 0.9, 20: 0.5})
    damage(tmp_path / "checkpoints" / "10")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 20
        checkpoints.save(30, make_state(30))
        checkpoints.save(40, make_state(40))
    assert caplog.records == []
    best = 10 if damage is flip_byte else 20  # the others lose the record, and with it the metric
    assert Checkpoints(tmp_path).steps() == [best, 30, 40]


def test_a_second_damage_of_a_step_is_set_aside_too(tmp_path):
    for expected in ({"10", "corrupt-20"}, {"10", "corrupt-20", "corrupt-20-2"}):
        save_all(tmp_path, {10: None, 20: None})
        empty(tmp_path / "checkpoints" / "20")
        Checkpoints(tmp_path).restore(abstract(make_state()))
        assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == expected


def test_the_same_object_can_save_what_it_set_aside(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, make_state(10))
        checkpoints.save(20, make_state(20))
        checkpoints.wait()
        flip_byte(tmp_path / "checkpoints" / "20")
        assert checkpoints.restore(abstract(make_state()))[1] == 10
        assert checkpoints.save(20, make_state(20))
        assert checkpoints.restore(abstract(make_state()))[1] == 20


def test_if_all_are_damaged_nothing_is_moved(tmp_path):
    save_all(tmp_path, {10: None, 20: None})
    empty(tmp_path / "checkpoints" / "10")
    flip_byte(tmp_path / "checkpoints" / "20")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"none of the checkpoints in .*checkpoints can be used \(step 20: .*move that"):
        Checkpoints(tmp_path).restore(abstract(make_state()))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("newest_too", [False, True])
def test_another_model_is_told_before_anything_is_touched(tmp_path, newest_too):
    save_all(tmp_path, {10: None, 20: None})
    if newest_too:
        empty(tmp_path / "checkpoints" / "20")
    before = sorted(tmp_path.rglob("*"))
    message = r"'params/pos_embed' is \(16, 64\) float32 there but \(17, 64\) float32 in this one"
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path).restore(abstract(make_state(rows=17)))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["head/bias", "head/kernel", "head_dist/bias", "decoder/head/bias"])
def test_another_number_of_classes_is_told_as_that(tmp_path, path):
    *groups, leaf = path.split("/")

    def of(classes):
        head = {leaf: jnp.ones((8, classes)[leaf == "bias" :])}
        for group in reversed(groups):
            head = {group: head}
        return make_state().replace(params={"gain": jnp.float32(1), **head})

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, of(3))
    message = (
        rf"^{tmp_path}/checkpoints/10 is a checkpoint of a model of 3 classes, and the data have 5: use the data it"
    )
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path).restore(abstract(of(5)))


def test_absent_and_additional_parameters_are_named(tmp_path):
    save_all(tmp_path, {10: None})
    state = make_state()
    fewer = state.replace(params={k: v for k, v in state.params.items() if k != "gain"})
    with pytest.raises(UserError, match=r"'params/gain' is \(\) float32 there but absent in this one"):
        Checkpoints(tmp_path).restore(abstract(fewer))
    more = state.replace(params={**state.params, "extra": jnp.ones(3)})
    with pytest.raises(UserError, match=r"'params/extra' is absent there but \(3,\) float32 in this one"):
        Checkpoints(tmp_path).restore(abstract(more))
    other = state.replace(step=jnp.float32(0))
    with pytest.raises(UserError, match=r"'step' is \(\) int32 there but \(\) float32 in this one"):
        Checkpoints(tmp_path).restore(abstract(other))


def test_an_array_that_the_record_promises_and_nobody_stored(tmp_path, monkeypatch):
    save_all(tmp_path, {10: None})
    state = make_state()
    more = abstract(state.replace(params={**state.params, "extra": jnp.ones(3)}))
    monkeypatch.setattr(record, "check_same_model", lambda *_: None)
    with pytest.raises(UserError, match=r"none of the checkpoints .* \(step 10: arrays are missing\)"):
        Checkpoints(tmp_path).restore(more)


def test_a_left_over_temporary_directory_is_no_checkpoint(tmp_path):
    save_all(tmp_path, {10: None})
    left_over = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "10", left_over)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 10
        assert checkpoints.save(20, make_state(20))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]


def test_user_errors_of_the_directory(tmp_path):
    with pytest.raises(UserError, match="keep_checkpoints is 0"):
        Checkpoints(tmp_path, keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot create the directory .*file/checkpoints \(Not a directory\)"):
        Checkpoints(tmp_path / "file")


def test_a_failed_write_is_a_user_error_and_leaves_the_last_one(tmp_path):
    resource = pytest.importorskip("resource")
    big = {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, big)
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))  # as a full disk
            checkpoints.save(2, big)
            with pytest.raises(UserError, match=r"cannot write a checkpoint to .*checkpoints: "):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Checkpoints(tmp_path).restore(abstract(big))[1] == 1


def test_the_users_logging_is_left_as_it_was(tmp_path):
    logger = logging.getLogger("absl")
    before = (logger.level, list(logger.handlers), list(logger.filters), logging.getLogger().level)
    save_all(tmp_path, {1: None})
    assert (logger.level, list(logger.handlers), list(logger.filters), logging.getLogger().level) == before


KILLED = """
    import sys
    import jax, numpy as np
    from lape_jax.train.checkpoint import Checkpoints

    def state(step):
        noise = np.random.default_rng(0).normal(size=(200, 1000)).astype(np.float32)
        return {"params": {"w": noise + step, "more": [noise * step] * 3}, "step": np.int32([step])}

    def check(found):
        for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(state(found[1])), strict=True):
            np.testing.assert_array_equal(a, b)
        return found[1]
"""
SAVE_UNTIL_KILLED = """
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    found = checkpoints.restore(state(0))
    first = check(found) if found else 0
    print(first, flush=True)
    for step in range(first + 1, 1_000_000):
        checkpoints.save(step, jax.device_put(state(step)), {"val/top1": -abs(step - 2)})
        if step == first + 1:
            checkpoints.wait()
            print("saved", flush=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_saves(tmp_path, caplog):
    rng = random.Random(0)
    shared = textwrap.dedent(KILLED)
    command = [sys.executable, "-W", "error", "-c", shared + textwrap.dedent(SAVE_UNTIL_KILLED), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    starts = []
    for _ in range(3):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as child:
            starts.append(child.stdout.readline())
            child.stdout.readline()
            time.sleep(0.4 * rng.random())
            child.kill()
            errors = child.stderr.read()
        assert child.returncode == -signal.SIGKILL, errors
        assert errors == ""  # no warning either: a kill leaves no damaged checkpoint
    names: dict = {}
    exec(shared, names)
    with Checkpoints(tmp_path) as checkpoints:
        last = names["check"](checkpoints.restore(names["state"](0)))
        assert checkpoints.best_step() == 2
    assert caplog.records == []
    lives = [*map(int, starts), last]
    assert lives[0] == 0
    assert lives == sorted(set(lives))  # every life went on from a checkpoint of the one before
