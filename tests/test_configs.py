"""Every file in configs/: its debug form runs a step, and the commands in its docstring describe models that build."""

import ast
import math
import re

import pytest

from lape_jax import cli
from lape_jax.train import setup
from tests import runs

FILES = sorted((runs.ROOT / "configs").glob("*.py"))
FIRST = ("digits", "segmenter_ti_linear_ade20k")
COMMANDS = [
    command
    for file in FILES
    for command in re.findall(r"lape_jax\.main --config=(configs/\S+)", ast.get_docstring(ast.parse(file.read_text())))
]


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=() if file.stem in FIRST else pytest.mark.slow) for file in FILES],
    ids=lambda file: file.stem,
)
def test_debug_form_runs_a_step(file, tmp_path):
    results, lines = runs.train(tmp_path, runs.load(f"{file}:debug", total_steps=1, warmup_steps=0))
    assert {line["step"] for line in lines} == {1}
    assert math.isfinite(lines[0]["train/loss"])
    assert results["val/examples"] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_docstring(command):
    config = cli.load_config(f"{runs.ROOT}/{command}", "")
    assert setup.build_model(config, num_classes=10).param_shapes()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_docstring_says_how_to_run_it(file):
    assert any(command.partition(":")[0] == f"configs/{file.name}" for command in COMMANDS)
