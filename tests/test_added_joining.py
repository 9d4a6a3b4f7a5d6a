"""A joining method that lape_jax knows nothing of is trained, ported, studied and swept, with every family."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import cli, port, sweep
from lape_jax.analysis import study
from lape_jax.errors import UserError
from lape_jax.nn.join import JOINS, Lape
from lape_jax.port import files, transfer
from lape_jax.port.infer import infer
from lape_jax.port.params import flatten, unflatten
from lape_jax.sweeps import seeds
from tests import quick, runs
from tests.analysis.models import create, norm, variables_of
from tests.port.tiny import identical


class LastLape(Lape):
    """LaPE, whose PE enters the final LayerNorm, too: LN(x_L + LNp(pe_{L-1}))."""

    title = "LaPE, also last"
    last_norm = True

    def final(self, x, pe, table, norm, pe_norm):
        return norm(x + pe_norm(pe))


@pytest.fixture(autouse=True)
def name(monkeypatch):
    """Of the method, which is one of those that there are as long as a test runs."""
    monkeypatch.setitem(JOINS, "lape_last", LastLape())
    return "lape_last"


SEGMENTER = {"decoder_depth": 1, "num_classes": 4, "patch_size": 8}
ADAPTER = {"image_size": 32, "interactions": 2, "spatial_width": 4, "deform_heads": 2}
CLASSIFIERS = {
    "deit_ti": {"distilled": True},
    "swin_t": {"pe": "learnable+relative"},
    "vit_ti_16": {"pool": "tok", "patch_size": 8},
    "deit_ti_gap": {"pool": "gap", "pe_norm": "scalar_norm"},
    "cct_7_3x1": {},
    "vit_lite_6_4": {},
    "t2t_vit_7": {"token_dim": 8},
    "ceit_ti": {},
}
DENSE = {"segmenter_ti_mask": SEGMENTER, "segmenter_ti_linear": SEGMENTER, "vit_adapter_ti": ADAPTER}
families = pytest.mark.parametrize("family", quick.first(1, CLASSIFIERS | DENSE))


def build(family, **changed):
    settings = {"join": "lape_last", **(CLASSIFIERS | DENSE)[family], **changed}
    return create(family.removesuffix("_gap"), **settings)


def images_of(model):
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, *model.input_shape)).astype(np.float32))


@families
def test_every_family_asks_it_what_comes_last(family):
    model = build(family)
    variables = variables_of(model)
    _, out = jax.jit(model.apply)(variables, images_of(model))
    if family == "vit_adapter_ti":  # which has no final norm
        assert "pe_norm_last" not in variables["params"]
        return
    last = variables["params"]["pe_norm_last"]
    if family == "ceit_ti":  # whose last block does not say what leaves it
        assert last["scale"].shape == (32,)
        return
    tokens, pe = (leaf[-1][-1] if family == "swin_t" else leaf[-1] for leaf in (out["tokens"], out["pe"]))
    outer = variables["params"].get("norm") or variables["params"]["Transformer"]["encoder_norm"]
    placed = norm(pe, last["scale"], last.get("bias", 0), model.ln_eps)
    placed[: model.no_embed_tokens] = 0
    expected = norm(tokens + placed, outer["scale"], outer["bias"], model.ln_eps)
    np.testing.assert_allclose(out["encoded"], expected, rtol=0, atol=2e-4)


@families
def test_it_is_ported(family, tmp_path):
    """Under PyTorch's names where the family has any, else under ours; which method it is can be seen."""
    model = build(family)
    variables = variables_of(model)
    names = "lape" if family == "vit_ti_16" else "torch"
    port.save(tmp_path / "weights.npz", variables, model, format=names)
    identical(variables, port.load(tmp_path / "weights.npz", model))
    if family in ("vit_adapter_ti", "vit_ti_16"):
        return
    weights, _ = files.read(tmp_path / "weights.npz")
    assert any("pe_norm_last" in entry for entry in weights)
    found = infer(lambda probe: files.stored_shapes(weights, probe), build(family, join="lape"))
    assert found[0].method.last_norm  # if it is another one, then one with the same weights


@pytest.mark.slow
@families
def test_it_begins_from_other_weights(family):
    model, source = build(family), build(family, join="default", pe_norm="layernorm")
    fresh = variables_of(model)
    result, moved = transfer.transfer(variables_of(source), source, fresh, model, "norm1")
    assert {path for path in moved.initialised if "pe_norm" not in path} == set()
    assert flatten(result).keys() == flatten(fresh).keys()


@pytest.mark.slow
@families
def test_it_is_studied(family):
    model = build(family)
    variables = variables_of(model)
    measured = None if family == "vit_adapter_ti" else [images_of(model)]
    one = study.study("last", model, variables, measured, eps=model.ln_eps)
    lape = model.clone(join="lape")
    kept = {path: x for path, x in flatten(variables).items() if "pe_norm_last" not in path}
    other = study.study("lape", lape, unflatten(kept), measured, eps=model.ln_eps)
    assert (one.rms, one.ratio) == (other.rms, other.ratio)  # in the blocks it is LaPE
    assert len(study.figures([one, other])) == 4 - (measured is None)


@families
def test_it_is_not_folded(family):
    model = build(family)
    error = "cannot be folded" if family == "swin_t" else "join='lape_last' does not say how its PE norms fold"
    with pytest.raises(UserError, match=error):
        port.fold(variables_of(model), model)


def test_what_has_no_such_norm_says_so():
    model = build("deit_ti", distilled=False, gelu="tanh")
    with pytest.raises(UserError, match="big_vision's ViT has nothing like pe_norm_last/bias, pe_norm_last/scale"):
        port.to_big_vision(variables_of(model), model)


@pytest.mark.slow
def test_it_trains(tmp_path):
    config = runs.load(**runs.LEARNING, **{"model.join": "lape_last", "optimizer.layer_decay": 0.9})
    results, lines = runs.train(tmp_path, config, devices=2)
    assert results["val/top1"] > 20
    assert lines[-1]["val/loss"] < lines[1]["val/loss"]


SWEEP = """
from lape_jax.nn.join import JOINS
from lape_jax.sweeps.grid import Cell, Sweep

def sweep(arg=""):
    cells = [Cell("digits", JOINS[join].title, f"FILE,join={join}") for join in ("lape", "lape_last")]
    return Sweep("Last", "", cells, (0, 1))
"""


@pytest.mark.slow
def test_it_is_swept(tmp_path):
    (tmp_path / "last.py").write_text(SWEEP.replace("FILE", runs.DIGITS))
    with runs.on(1), mock.patch.object(seeds, "_RUNS_ONCE", quick.COMPILER_OPTIONS):
        argv = [f"--config={tmp_path / 'last.py'}", f"--out={tmp_path / 'out'}"]
        assert cli.exit_code(lambda: sweep.main(argv)) == 0
    assert "| LaPE, also last |" in (tmp_path / "out" / "table.md").read_text()
