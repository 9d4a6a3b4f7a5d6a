"""Every file in configs/: its debug form runs a step, and the commands in its docstring describe models that build."""

import ast
import math
import re

import numpy as np
import pytest

from lape_jax import cli
from lape_jax.train import plan as plans
from lape_jax.train import setup
from tests import quick, runs

FILES = sorted((runs.ROOT / "configs").glob("*.py"))
OTHER = re.compile(r"_[sb](_|$)|cifar100").search  # sizes and data sets: of each model one debug form runs
# What has whole runs in tests/test_..._run.py, and a detector that differs from another in its length.
WHOLE = ("digits", "upernet_vit_adapter_ti_ade20k", "mask_rcnn_vit_adapter_ti_coco", "detect_digits")
COMMANDS = {
    file: re.findall(r"lape_jax\.main --config=(configs/\S+)", ast.get_docstring(ast.parse(file.read_text())))
    for file in FILES
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [file for file in FILES if not OTHER(file.stem) and file.stem not in WHOLE],
    ids=lambda file: file.stem,
)
def test_debug_form_runs_a_step(file, tmp_path):
    results, lines = runs.train(tmp_path, runs.load(f"{file}:debug", total_steps=1, warmup_steps=0))
    assert {line["step"] for line in lines} == {1}
    assert math.isfinite(lines[0]["train/loss"])
    assert results["val/examples"] > 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shorter_run_is_one_option_away(file):
    path = "" if file.stem.endswith("digits") else ":path=DIR"
    plan = plans.make(cli.load_config(f"{file}{path}", "", [("total_epochs", "3")]), 50_000)
    assert plan.total == 3 * plan.steps_per_epoch


def test_digits_at_their_own_length():
    config = cli.load_config(str(runs.ROOT / "configs" / "digits.py"), "")
    plan = plans.make(config, 1438)
    assert plan.total == 60 * 22
    assert plan.every == {"log": 5 * 22, "eval": 10 * 22, "checkpoint": 10 * 22}
    assert plan.learning_rate(np.arange(plan.total)).argmax() == 5 * 22 - 1  # the last step of the warm-up


@pytest.mark.parametrize("command", [one for commands in COMMANDS.values() for one in quick.first(1, commands)])
def test_commands_of_the_docstring(command):
    config = cli.load_config(f"{runs.ROOT}/{command}", "")
    model = setup.build_model(config, num_classes=10)
    assert model.num_classes == 10


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for commands in COMMANDS.values() for command in commands])
def test_models_of_the_docstring(command):
    config = cli.load_config(f"{runs.ROOT}/{command}", "")
    assert setup.build_model(config, num_classes=10).param_shapes()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_docstring_says_how_to_run_it(file):
    assert any(command.partition(":")[0] == f"configs/{file.name}" for command in COMMANDS[file])
