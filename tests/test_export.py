"""Exported programs and weights: read again without the package's models, and the same."""

import json
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from lape_jax import export, models, port
from lape_jax.augment.photometric import normalise
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks.config import from_json
from lape_jax.tasks.detect import recipes
from lape_jax.train import trained
from tests import quick, runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, config, model, variables) of a finished run with an average of its weights."""
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    config = from_json(workdir / "config.json")
    with runs.on(1):
        found = trained.of_run(workdir, config, mesh=sharding.make_mesh(config.mesh))
        model, variables = found.model, found.variables
    return workdir, config, model, jax.device_get(variables)


def write(run, out, **options):
    with runs.on(1):
        export.main(run[1], runs.options(export, **{"workdir": run[0], "out": out, **options}))


@pytest.mark.parametrize("fold", quick.first(1, ["true", "false"]))
def test_a_program_takes_batches_of_any_size(run, fold, tmp_path, capsys):
    _, config, model, variables = run
    write(run, tmp_path / "m.stablehlo", fold=fold)
    assert f"join {'folded' if fold == 'true' else 'lape'}, read again and compared" in capsys.readouterr().out
    program = jax.export.deserialize(bytearray((tmp_path / "m.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(1).integers(0, 256, (5, *model.input_shape), np.uint8)
    normal = normalise(jnp.asarray(images), config.data.mean, config.data.std)
    expected = quick.jit(model.apply)(variables, normal)[0]
    np.testing.assert_allclose(program.call(images), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(program.call(images[:2]), expected[:2], rtol=0, atol=1e-5)


def test_weights_with_what_a_reader_must_know(run, tmp_path):
    _, config, model, variables = run
    write(run, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "numpy") as file:
        about, names = file.metadata(), set(file.keys())
    assert names == set(port.to_torch(variables, model))
    assert (about["model"], about["join"], about["pe"]) == ("vit_micro", "lape", "learnable")
    assert json.loads(about["image_size"]) == [8, 8]
    assert json.loads(about["mean"]) == list(config.data.mean)
    assert json.loads(about["classes"]) == [str(i) for i in range(10)]


@pytest.mark.peer
def test_the_docs_read_them_in_pytorch(run, tmp_path):
    torch = pytest.importorskip("torch")
    _, _, model, variables = run
    write(run, tmp_path / "m.safetensors")
    page = (runs.ROOT / "docs" / "weights.md").read_text()
    (snippet,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def lape_vit" in code)
    exec(snippet.replace("lape.safetensors", str(tmp_path / "m.safetensors")), scope := {})
    images = np.random.default_rng(2).normal(size=(3, *model.input_shape)).astype(np.float32)
    found = scope["model"](torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    expected = np.asarray(model.apply(variables, jnp.asarray(images))[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_average_is_other_weights(run, tmp_path):
    write(run, tmp_path / "m.npz")
    write(run, tmp_path / "ema.npz", ema="true")
    with np.load(tmp_path / "m.npz") as own, np.load(tmp_path / "ema.npz") as average:
        assert set(own) == set(average)
        assert not np.array_equal(own["head.weight"], average["head.weight"])


@pytest.mark.slow
def test_a_program_of_big_visions_vit(run, tmp_path):
    """With a batch of any size, and logits that are all zero, as its head starts."""
    sizes = {"width": 16, "depth": 1, "heads": 2, "image_size": 8, "patch_size": 4, "num_classes": 3}
    model = models.create("vit_ti_16", **sizes, pool="map")
    with runs.on(1):
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        export.export_program(tmp_path / "m.stablehlo", model, variables, run[1])


@pytest.mark.slow
def test_a_program_of_a_detector(tmp_path):
    """It gives a dict; with constants for the canvas, which is larger than the images of the position table."""
    config = recipes.mask_rcnn("source=digits", "mask_rcnn_vit_adapter_ti")
    config.detect.canvas = (64, 32)
    sizes = {"width": 12, "depth": 4, "heads": 2, "image_size": 32, "deform_heads": 2, "spatial_width": 4}
    sizes |= {"channels": 4, "hidden": 6, "num_classes": 3, "score_threshold": 0.2, "detections": 5, "proposals": 20}
    model = models.create("mask_rcnn_vit_adapter_ti", **sizes)
    with runs.on(1):
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        folded, constants = port.fold(jax.device_get(variables), model, export.image_shape(config, model)[:2])
        export.export_program(tmp_path / "m.stablehlo", folded, constants, config)
    program = jax.export.deserialize(bytearray((tmp_path / "m.stablehlo").read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), np.uint8)
    found, normal = program.call(images), normalise(jnp.asarray(images), config.data.mean, config.data.std)
    assert found["boxes"].shape == (2, 5, 4)
    assert found["valid"].any()
    expected = quick.jit(lambda variables, x: model.apply(variables, x)[0]["scores"])(variables, normal)
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "m.onnx"}, "--format='onnx'"),
        ({"out": "m.npz", "format": "stablehlo"}, "should end in .stablehlo"),
        ({"out": "m.npz", "fold": "true"}, "--fold=true needs --format=stablehlo"),
        ({"out": "m.stablehlo", "fold": "yes"}, "--fold is 'yes': it must be true or false"),
        ({"out": "m.npz", "step": "7"}, "7"),
        ({"out": "none/m.npz"}, "cannot be written"),
        ({"out": "m.npz", "config": "c.py"}, "leave out --config"),
        ({"out": "m.npz", "weights": "w.npz", "workdir": "", "step": "best"}, "--step is of a run"),
        ({"out": "m.npz", "weights": "w.npz", "workdir": "", "ema": "true"}, "--ema is of a run"),
    ],
)
def test_mistakes(run, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write(run, tmp_path / options.pop("out"), **options)
    assert list(tmp_path.iterdir()) == []
