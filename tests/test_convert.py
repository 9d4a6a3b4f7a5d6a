"""The command that converts weights, in process."""

import json
import re

import jax
import numpy as np
import pytest

from lape_jax import cli, convert, models, port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from tests import quick, runs
from tests.port.tiny import TINY, identical, random_variables, tiny

SIZES = [f"--model.{key}={value}" for key, value in TINY.items() if key not in ("num_classes", "image_size")]


def run(*argv):
    convert.main([str(arg) for arg in argv])


def test_there_and_back_without_a_word_on_what_the_weights_say(tmp_path, capsys):
    model = tiny(join="lape", num_classes=7, image_size=24, distilled=True)
    variables = random_variables(model)
    port.save(tmp_path / "a.npz", variables, model)
    run(tmp_path / "a.npz", tmp_path / "b.safetensors", "--model=deit_ti", "--to=lape", *SIZES)
    identical(port.load(tmp_path / "b.safetensors", model), variables)
    out = capsys.readouterr().out
    assert all(path in out for path in flatten(variables))
    assert out.endswith("(join lape, pe learnable, 24 x 24 pixels, 7 classes), 32,654 parameters\n")
    assert "PyTorch's names) -> " in out
    run(tmp_path / "b.safetensors", tmp_path / "c.npz", "--model=deit_ti", *SIZES)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "c.npz") as c:
        assert {name: a[name].tobytes() for name in a} == {name: c[name].tobytes() for name in c}


def test_big_vision(tmp_path):
    model = tiny(join="default", gelu="tanh", pool="gap")
    variables = random_variables(model)
    port.save(tmp_path / "bv.npz", variables, model, format="big_vision")
    run(tmp_path / "bv.npz", tmp_path / "t.npz", "--model=deit_ti", *SIZES, "--model.gelu=tanh", "--model.pool=gap")
    identical(port.load(tmp_path / "t.npz", model), variables)


def test_a_run_knows_its_model(tmp_path_factory, tmp_path, capsys):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    run(workdir, tmp_path / "run.npz", "--to=lape")
    assert re.search(r"\(a run, step \d+, the best that was evaluated\) ->", capsys.readouterr().out)
    with pytest.raises(UserError, match="a run says itself which model"):
        run(workdir, tmp_path / "run.npz", "--model=deit_ti")


def test_a_run_may_have_had_other_devices(tmp_path_factory, tmp_path):
    workdir = runs.copy(runs.finished(tmp_path_factory.getbasetemp()), tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    config["mesh"]["fsdp"] = 16  # more than there are
    (workdir / "config.json").write_text(json.dumps(config))
    run(workdir, tmp_path / "run.npz")


@pytest.mark.slow
def test_a_network_without_position_embedding(tmp_path):
    np.savez(tmp_path / "a.npz", **{"head.fc.weight": np.zeros((7, 3024), np.float32)})
    with pytest.raises(UserError, match=r"a.npz: the state dict .* does not fit the model: it lacks .* and \d+ more"):
        run(tmp_path / "a.npz", tmp_path / "b.npz", "--model=regnety_160")


def test_misfits_leave_what_was_there(tmp_path):
    model = tiny(join="default")
    port.save(tmp_path / "a.npz", random_variables(model), model)
    (tmp_path / "there.npz").write_bytes(b"as it was")
    for options, message in (
        ([*SIZES, "--model.join=lape"], r"a.npz: .*it lacks blocks.0-1.pe_norm"),
        ([*SIZES, "--model.num_classes=4"], r"head.weight is \(5, 32\) and should be \(4, 32\)"),
        ([], r"blocks.0-1.attn.proj.bias is \(32,\) and should be \(192,\)"),
        (["--model.widht=3"], "widht.*width"),
        (["--to=bigvision"], "bigvision.*big_vision"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "a.npz", tmp_path / "there.npz", "--model=deit_ti", *options)
    with pytest.raises(UserError, match="--model=NAME is missing"):
        run(tmp_path / "a.npz", tmp_path / "there.npz")
    assert (tmp_path / "there.npz").read_bytes() == b"as it was"


def test_many_layers_are_named_in_one(tmp_path):
    model = tiny(join="default", depth=24)
    port.save(tmp_path / "a.npz", random_variables(model), model)
    with pytest.raises(UserError, match=r"it lacks blocks.0-23.pe_norm.bias, blocks.0-23.pe_norm.weight$"):
        run(tmp_path / "a.npz", tmp_path / "b.npz", "--model=deit_ti", *SIZES, "--model.depth=24", "--model.join=lape")


def test_mistakes_are_one_line(tmp_path, capfd):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    code = cli.exit_code(lambda: run(tmp_path / "bad.npz", tmp_path / "b.npz", "--model=deit_ti"))
    error = capfd.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


FAMILIES = ["vit_lite_6_4", "cct_7_3x1", "t2t_vit_7", "ceit_ti", "swin_t", "segmenter_ti_mask"]


@pytest.mark.parametrize("name", quick.first(1, FAMILIES))
def test_every_family_is_read_off_its_weights(name, tmp_path):
    """Of the family no more is said than its name."""
    sizes = {"num_classes": 3, "width": 32, "heads": 2}
    sizes |= {"depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2)} if name == "swin_t" else {"depth": 2}
    model = models.create(name, **sizes)
    shapes = model.variable_shapes()
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    port.save(tmp_path / "a.npz", variables, model)
    told = [f"--model.{key}={value}" for key, value in sizes.items() if key != "num_classes"]
    convert.main([str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), f"--model={name}", "--to=lape", *told])
    identical(port.load(tmp_path / "b.npz", model), variables)
