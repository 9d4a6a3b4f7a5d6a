"""The wheel: what is in it, and that models, port and fold need no more than its own dependencies."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("lape_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
# Modules of the extras; others come with Flax.
EXTRAS = ("ml_collections", "clu", "tensorboardX", "flatbuffers", "grain", "tensorflow_datasets", "array_record", "PIL")
EXTRAS += ("simplejpeg", "cv2", "pycocotools", "sklearn", "matplotlib", "huggingface_hub", "wandb", "torch")
BARE = f"""
import sys
sys.path.insert(0, sys.argv[1])
sys.modules.update(dict.fromkeys({EXTRAS}))
import jax, lape_jax, lape_jax.models, lape_jax.port as port
assert lape_jax.__file__.startswith(sys.argv[1]), lape_jax.__file__
model = lape_jax.models.create("deit_ti", width=16, depth=2, heads=2, image_size=16, patch_size=8, num_classes=3)
variables = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, 0.1), model.variable_shapes())
port.save("w.safetensors", variables, model)
folded, constants = port.fold(port.load("w.safetensors", model), model)
logits, _ = folded.apply(constants, jax.numpy.ones((1, 16, 16, 3)))
assert logits.shape == (1, 3)
"""
SHIPPED = "from lape_jax import cli; print(cli.SHIPPED, cli.read_config_file('deit_ti:join=default').model.join)"


@pytest.mark.slow
def test_a_wheel_in_a_bare_environment(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in SOURCES:
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copied(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("lape_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    inside = {path.relative_to(site).as_posix() for path in site.rglob("*.py")}
    assert inside >= {path.relative_to(ROOT).as_posix() for path in (ROOT / "lape_jax").rglob("*.py")}
    assert inside >= {f"lape_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert not [name for name in inside if not name.startswith("lape_jax/")]
    (metadata,) = site.glob("*.dist-info/METADATA")
    asked = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata.read_text(), re.MULTILINE)
    assert set(asked) == {"jax", "flax", "jaxtyping", "numpy", "safetensors"}
    subprocess.run([sys.executable, "-I", "-c", BARE, site], cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", SHIPPED], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(site / "lape_jax" / "configs"), "default"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "lape_jax.convert"], "error: this command needs grain, PIL: pip install 'lape_jax[all]'\n"),
        (["-m", "pytest", "lape_jax.convert"], ""),
    ],
)
def test_what_commands_lack_is_one_line(arguments, said):
    code = f"import sys; sys.orig_argv = {arguments}; sys.modules.update(grain=None, PIL=None); import lape_jax"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2 if said else 0, said)


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (said,) = re.findall(r'__version__ = "(.*)"', (ROOT / "lape_jax" / "__init__.py").read_text())
    assert said == project["version"]
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == said
