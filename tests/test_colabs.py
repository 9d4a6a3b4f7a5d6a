"""The notebooks: they run from top to bottom in their small setting, and what is stored of them is fit to be kept."""

import ast
import base64
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import quick

COLABS = Path(__file__).parents[1] / "colabs"
QUICKSTART, YOUR_VIT, CIFAR = (f"lape_{name}.ipynb" for name in ("quickstart", "in_your_vit", "cifar_tpu"))
NOTEBOOKS = (QUICKSTART, YOUR_VIT, CIFAR)
BYTES = 300_000
MACHINE = re.compile(r"(?<![\w.:/])/(tmp|work|root|home|usr|opt|var|mnt|Users|private)\b|0x[0-9a-f]{6,}")
# Run after the last cell: prints what the tests look at, and whether TensorFlow has come in unasked.
LAST = "print(__import__('json').dumps([{}, 'tensorflow' in __import__('sys').modules, __import__('os').listdir()]))"
# Steps are few there, and compiling them is the cost. (The quickstart has enough steps for it to be the other way.)
QUICKLY = " ".join(f"--{name}={str(value).lower()}" for name, value in quick.COMPILER_OPTIONS.items())


def read(path):
    return json.loads(path.read_text())


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


def text_of(outputs):
    found = [output.get("text", []) + output.get("data", {}).get("text/plain", []) for output in outputs]
    return "".join(line for lines in found for line in lines)


def pictures_of(outputs):
    encoded = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode("".join(data)))).convert("L")) for data in encoded]


def source_of(cell):
    return "".join(cell["source"])


def executed(name, directory, expression, flags=QUICKLY, before_last=""):
    """The outputs of a notebook that has just run in its small setting, and the value of an expression after that."""
    notebook = read(COLABS / name)
    last = {"cell_type": "code", "execution_count": None, "id": "last", "metadata": {}, "outputs": []}
    notebook["cells"].append(last | {"source": f"{before_last}\n{LAST.format(expression)}"})
    (directory / name).write_text(json.dumps(notebook))
    (directory / "out").mkdir()
    command = [sys.executable, COLABS / "execute.py", directory / name, "--small", "--out", directory / "out"]
    done = subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": flags}, cwd=directory, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = outputs(read(directory / "out" / name))
    value, tensorflow, files = json.loads(text_of(found[-1:]).splitlines()[-1])
    assert not tensorflow
    return found[:-1], value, files


@pytest.mark.slow
def test_quickstart(tmp_path):
    found, top1, _ = executed(QUICKSTART, tmp_path, "top1", flags="")
    text = text_of(found)
    assert text.count("done: 132 steps") == 2
    assert "52,394 parameters" in text
    assert "52,778 parameters" in text
    assert top1["LaPE"] > top1["default"] + 20  # 60 after six epochs
    assert len(pictures_of(found)) == 4


@pytest.mark.slow
def test_lape_in_your_vit(tmp_path):
    results = "[by_hand, scanned_difference, warm_start, big_vision_difference, moved, moved_larger, same_default]"
    found, value, files = executed(YOUR_VIT, tmp_path, results)
    by_hand, scanned, warm_start, big_vision, moved, larger, same_default = value
    assert same_default
    assert by_hand["mine with LaPE"] > by_hand["mine"] + 10
    assert max(*scanned.values(), big_vision) < 1e-5
    assert {"default.safetensors", "lape_big_vision.npz"} <= set(files)
    loaded, resized, initialised, dropped, _ = moved
    assert len(loaded) == 20
    assert "pos_embed" in loaded
    assert resized == dropped == []
    assert initialised == ["blocks/pe_norm/bias", "blocks/pe_norm/scale"]
    assert larger[1] == ["pos_embed"]
    assert all(np.isfinite(warm_start[name]).all() for name in ("from scratch", "warm start"))
    assert "initialised: blocks/pe_norm/bias, blocks/pe_norm/scale\n" in text_of(found)
    assert "39,178 parameters, with LaPE 39,370: 192 = 3 x 2 x 32 more" in text_of(found)


@pytest.mark.slow
def test_lape_cifar_tpu(tmp_path):
    """Also: a second visit to a finished run changes nothing, and the full recipe's config is what the text says."""
    again = "again = train_and_evaluate(config('lape'), ROOT / 'lape')\nSMALL = False\nrecipe = config('lape')"
    results = "[results, again, recipe.total_epochs, recipe.model.name, recipe.data.source, 3.1 * recipe.mix_percent]"
    found, value, files = executed(CIFAR, tmp_path, results, before_last=again)
    first, again, *recipe = value
    assert recipe == [310.0, "vit_lite_7_4", "arrays", pytest.approx(175.0)]
    assert {"generated.tar.gz", "data_small", "lape_cifar_small"} <= set(files)
    assert set(first) == {"default", "lape"}
    for result in first.values():
        assert result["val/examples"] == 100
        assert np.isfinite(list(result.values())).all()
    assert again == first["lape"]
    text = text_of(found)
    assert text.count("done: 20 steps") == 2
    assert "train.npz: 500 images" in text
    assert "rand-m9-mstd0.5-inc1, mixup 0.8 or CutMix 1 (50 % CutMix), erase 0.25" in text
    assert len(pictures_of(found)) == 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored(name):
    assert (COLABS / name).stat().st_size < BYTES
    notebook = read(COLABS / name)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    found = outputs(notebook)
    assert text_of(found)
    assert not MACHINE.search(text_of(found))
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    for picture in pictures_of(found):
        assert picture.std() > 10  # something is drawn
        assert max(picture.shape) < 1000
    assert notebook["metadata"].pop("accelerator", "TPU") == "TPU"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"] == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert not any(cell["metadata"] for cell in notebook["cells"])
    sources = "\n".join(map(source_of, notebook["cells"]))
    assert "import tensorflow" not in sources
    assert not MACHINE.search(sources)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_names_of_ours_exist(name):
    """What a notebook imports of `lape_jax`, and each attribute of these modules that it reads, is there."""
    code = ast.parse("\n".join(source_of(cell) for cell in read(COLABS / name)["cells"] if cell["cell_type"] == "code"))
    modules = {}
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lape_jax":
            home = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(home, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                modules[alias.asname or alias.name] = getattr(home, alias.name)
    read_of = [n for n in ast.walk(code) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    ours = [(n.value.id, n.attr) for n in read_of if inspect.ismodule(modules.get(n.value.id))]
    assert len(ours) > 3
    assert [f"{module}.{attr}" for module, attr in ours if not hasattr(modules[module], attr)] == []


def set_up(monkeypatch, modules, has_gpu=False, variables=(), repository=None):
    """The commands that the first cell of the notebooks runs, in an environment such as Colab's."""
    first = {source_of(next(c for c in read(COLABS / name)["cells"] if c["cell_type"] == "code")) for name in NOTEBOOKS}
    assert len(first) == 1
    code, commands = first.pop(), []
    for module in modules:
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.setattr("shutil.which", lambda name: "/bin/nvidia-smi" if has_gpu and name == "nvidia-smi" else None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append([str(part) for part in command]))
    for name in variables:
        monkeypatch.setenv(name, "V5E")
    if repository:
        code = code.replace("https://github.com/OWNER/lape_jax", repository)
    exec(code, {})
    return commands


def test_elsewhere_nothing_is_installed(monkeypatch):
    assert set_up(monkeypatch, []) == []


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, "[all]"),
        ({"has_gpu": True}, "[all,cuda12]"),
        ({"variables": ["TPU_ACCELERATOR_TYPE"]}, "[all,tpu]"),
    ],
)
def test_on_colab_the_repository_is_installed(monkeypatch, tmp_path, options, extra):
    monkeypatch.chdir(tmp_path)
    address = "https://example.org/somebody/lape_jax"
    clone, install = set_up(monkeypatch, ["google.colab"], repository=address, **options)
    assert clone == ["git", "clone", "--depth=1", address, "lape_jax_repository"]
    assert install == [sys.executable, "-m", "pip", "install", "-q", "-e", f"lape_jax_repository{extra}"]
    assert sys.path[0] == str(tmp_path / "lape_jax_repository")


def test_on_colab_the_address_must_be_set(monkeypatch):
    with pytest.raises(AssertionError, match="set REPOSITORY"):
        set_up(monkeypatch, ["google.colab"])
