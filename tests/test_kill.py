"""Runs that are killed, stopped, moved to other devices, or find their newest checkpoint damaged, and go on."""

import os
import random
import runpy
import shutil
import signal
import types

import pytest

from tests import quick, runs

soak = types.SimpleNamespace(**runpy.run_path(str(runs.ROOT / "benchmarks" / "soak.py")))

FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in quick.COMPILER_OPTIONS.items())
NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


@pytest.fixture
def environment(tmp_path):
    """Of a process with one device that starts quickly."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("raise ImportError")  # tensorboardX would import it, for seconds
    return {
        "PYTHONPATH": str(tmp_path / "modules"),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {FLAGS}",
    }


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_save_ends_bit_identical(tmp_path, environment):
    options = [*soak.OPTIONS, "--config.total_steps=60", "--config.warmup_steps=10", "--config.batch_size=16"]
    killed_in_a_save(tmp_path, options, environment, first_checkpoint=20, total=60)


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_bit_identical(tmp_path, environment):
    options = [*soak.OPTIONS, "--config.total_steps=200", "--config.batch_size=16"]
    workdir, whole = tmp_path / "interrupted", tmp_path / "whole"

    # kill -9 while it compiles the first step, which it says that it is about to make
    with soak.Life(workdir, options, environment | NO_CACHE) as life:
        life.wait_for(lambda: "training for 200 steps" in life.said())
        assert life.end(signal.SIGKILL) == -signal.SIGKILL
        assert "first step" not in life.said()
        assert soak.last_step(workdir) == -1

    # kill -9 in the middle of a save
    with soak.Life(workdir, options, environment) as life:
        life.wait_for((workdir / "checkpoints" / "20").is_dir)
        life.freeze_in_save()
        assert life.end(signal.SIGKILL) == -signal.SIGKILL
        assert life.resumed_at() == 0
        assert [*(workdir / "checkpoints").glob("*-tmp*")]
        saved = newest_checkpoint(workdir)

    # kill -9 at a random step
    with soak.Life(workdir, options, environment) as life:
        life.wait_for_step(saved + random.Random(0).randrange(5, 25))
        assert life.end(signal.SIGKILL) == -signal.SIGKILL
        assert life.resumed_at() == saved

    # SIGTERM, as before a preemption: it saves where it is, which need not be where it would have saved
    with soak.Life(workdir, options, environment) as life:
        life.wait_for(lambda: "first step made" in life.said())
        assert life.end(signal.SIGTERM) == 0
        saved = newest_checkpoint(workdir)
        assert f"stopped by SIGTERM at step {saved}/200, saved in {workdir}; the same command resumes" in life.said()

    # Ctrl-C
    with soak.Life(workdir, options, environment) as life:
        life.wait_for(lambda: "first step made" in life.said())
        assert life.end(signal.SIGINT) == 130
        assert life.resumed_at() == saved
        assert life.said().endswith("interrupted\n")
        saved = newest_checkpoint(workdir)

    with (
        soak.Life(workdir, options, environment) as life,
        soak.Life(whole, options, environment) as uninterrupted,
    ):
        assert life.end() == uninterrupted.end() == 0
        assert life.resumed_at() == saved < 200
        assert "warning" not in life.said()
        assert soak.last_step(workdir) == 200
        assert soak.differences(whole, workdir) == []


# What makes a run of a detector short. All that is random takes part.
SHORT = {
    "total_steps": 8,
    "batch_size": 8,
    "steps_per_dispatch": 1,
    "log_percent": 12.5,
    "eval_percent": 100,
    "checkpoint_percent": 25,
    "model.drop_path": 0.2,
    "optimizer.lr": 1e-3,
    "ema_decay": 0.9,
    "report": "false",
}


@pytest.mark.slow
def test_a_killed_run_of_a_detector_ends_bit_identical(tmp_path, environment):
    options = [f"--config={runs.ROOT}/configs/mask_rcnn_vit_adapter_ti_coco.py:debug"]
    options += [f"--config.{key}={value}" for key, value in SHORT.items()]
    killed_in_a_save(tmp_path, options, environment, first_checkpoint=2, total=8)


def killed_in_a_save(directory, options, environment, first_checkpoint, total):
    """A run that is killed in the save after its first checkpoint, and goes on, ends as one that was left alone."""
    workdir, whole = directory / "interrupted", directory / "whole"
    with soak.Life(workdir, options, environment) as life:
        life.wait_for((workdir / "checkpoints" / str(first_checkpoint)).is_dir)
        life.freeze_in_save()
        assert life.end(signal.SIGKILL) == -signal.SIGKILL
        assert [*(workdir / "checkpoints").glob("*-tmp*")]
        saved = newest_checkpoint(workdir)
    with (
        soak.Life(workdir, options, environment) as life,
        soak.Life(whole, options, environment) as uninterrupted,
    ):
        assert life.end() == uninterrupted.end() == 0
        assert life.resumed_at() == saved < total
        assert soak.last_step(workdir) == total
        assert soak.differences(whole, workdir) == []


def newest_checkpoint(workdir):
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a whole run on one device, with checkpoints at steps 22, 33 and 44."""
    return runs.finished(tmp_path_factory.getbasetemp())


def test_it_can_tell_runs_apart(finished, tmp_path):
    other = runs.copy(finished, tmp_path)
    metrics = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(metrics.replace('"lr": 0.0', '"lr": 0.1', 1))
    (line,) = soak.differences(finished, other)
    assert " against " in line
    shutil.rmtree(other / "checkpoints" / "44")
    names = soak.differences(finished, other)[:-1]
    assert {"step", "params/head/kernel", "ema/params/head/kernel"} < set(names)
    assert any("nu/" in name for name in names)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(finished, tmp_path):
    workdir = runs.copy(finished, tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "44")
    shutil.rmtree(workdir / "checkpoints" / "33")
    _, lines = runs.train(workdir, runs.load(**runs.LEARNING), devices=4)
    expected = runs.metrics(finished)
    assert lines[:4] == expected[:4]  # up to step 22 they are those of one device
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    assert runs.losses(lines) == pytest.approx(runs.losses(expected), abs=1e-5)
    assert lines != expected


def truncate(checkpoint):
    """As if the disk had been full, or the machine had gone down before it was written."""
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def write_half(checkpoint):
    shutil.rmtree(checkpoint / "record")
    (checkpoint / "state" / "manifest.ocdbt").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("damages", "instead"), [({44: truncate}, 33), ({44: write_half, 33: truncate}, 22)])
def test_damaged_checkpoints_are_passed_over_for_the_one_before(finished, tmp_path, caplog, capsys, damages, instead):
    workdir = runs.copy(finished, tmp_path)
    for step, damage in damages.items():
        damage(workdir / "checkpoints" / str(step))
    runs.train(workdir, runs.load(**runs.LEARNING))
    assert [message.partition(": ")[0] for message in caplog.messages] == [
        f"checkpoint {step} is passed over for {instead}, it is now corrupt-{step}" for step in damages
    ]
    assert f"resuming at step {instead} of 44" in capsys.readouterr().out
    assert soak.differences(finished, workdir) == []
