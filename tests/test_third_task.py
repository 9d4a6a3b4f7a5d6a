"""A task that lape_jax knows nothing of (tests/rotations.py) trains, is killed, goes on, and is reported."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from lape_jax import tasks
from tests import quick, runs

CONFIG = """
from lape_jax.tasks.config import base

def get_config(arg=""):
    config = base()
    config.task = "rotate"
    config.model.update({"name": "vit_micro", "width": 16, "depth": 2, "heads": 2, "patch_size": 2})
    config.data.image_size, config.data.channels, config.data.mean, config.data.std = 8, 1, (0.5,), (0.5,)
    config.batch_size, config.total_steps, config.warmup_steps = 32, 200, 10
    config.log_steps, config.eval_steps, config.checkpoint_steps = 20, 100, 20
    config.optimizer.lr = 1e-2
    return config
"""


def started(config, workdir):
    command = [sys.executable, "-m", "tests.rotations", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {quick.FLAGS}"},
    )  # fmt: skip


def finish(config, workdir):
    """What the command says to the end."""
    with started(config, workdir) as run:
        out, error = run.communicate(timeout=300)
    assert run.returncode == 0, error
    return out


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "rotate.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_uninterrupted(config, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    finish(config, whole)
    with started(config, killed) as run:
        while not (killed / "checkpoints" / "40").is_dir() and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert "resuming at step" in finish(config, killed)
    assert runs.metrics(killed) == runs.metrics(whole)


@pytest.mark.slow
def test_it_learns_and_is_reported(config, tmp_path, capsys):
    whole = tmp_path / "whole"
    with mock.patch.dict(tasks.TASKS):
        runpy.run_module("tests.rotations")  # names the task
        results, _ = runs.train(whole, runs.load(config, report=True, log_steps=50, checkpoint_steps=100))
    assert results["val/turns"] > 50  # chance is 25
    assert f"turns {results['val/turns']:.2f}%" in capsys.readouterr().out

    report = (whole / "report.md").read_text()
    assert f"| val/turns | {results['val/turns']:.6g} |" in report
    assert {"curves.png", "images.png"} <= {path.name for path in (whole / "figures").iterdir()}
    assert json.loads((whole / "data.json").read_text())["classes"] == ["0", "1", "2", "3"]
