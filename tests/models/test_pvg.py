"""PVG and MPVG: published counts, what must not change their numbers, and what they are not defined for."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.analysis import activations, effective_pe
from lape_jax.errors import UserError
from lape_jax.models.depth import layer_ids
from lape_jax.port import files, transfer
from lape_jax.port.infer import infer
from lape_jax.port.params import flatten
from tests import quick, runs
from tests.analysis.models import norm
from tests.models.compare import create
from tests.port.tiny import random_variables, round_trip, tiny
from tests.reference import cases

CASE = cases.Case(join="mpvg", pool="gap", image=(8, 32))


def count(name, **settings):
    return sum(leaf.size for leaf in jax.tree.leaves(models.create(name, **settings).param_shapes()))


@pytest.mark.parametrize(
    ("name", "settings", "pvg", "mpvg"),
    quick.first(
        1,
        [
            ("vit_lite_7_4", {"pool": "gap", "num_classes": 100}, 3_742_564, 3_743_076),
            ("deit_ti", {"pool": "gap"}, 5_721_256, 5_721_640),
            ("deit_s", {"pool": "gap"}, 22_058_344, 22_059_112),
            ("deit_b", {"pool": "gap"}, 86_583_016, 86_584_552),
            ("swin_t", {}, 28_598_242, 28_599_778),
        ],
    ),
)
def test_published_counts(name, settings, pvg, mpvg):
    """Tables 1 and 2 of MPVG print them in millions, cut after three digits."""
    assert [count(name, join=join, **settings) for join in ("pvg", "mpvg")] == [pvg, mpvg]


@pytest.mark.slow
def test_published_counts_of_t2t():
    """Which have in them what is never learned."""
    frozen = 196 * 256 + 2 * 64 * 32  # the sinusoid, and random features
    found = [count("t2t_vit_7", join=join, pool="gap") + frozen for join in ("pvg", "mpvg")]
    assert found == [4_312_782, 4_313_294]


@pytest.fixture(scope="module")
def answers():
    """Logits and gradients by how the model runs, in float64."""
    with jax.enable_x64(True):
        model = create(CASE)
        variables, images = port.from_torch(cases.weights(CASE), model), jnp.asarray(cases.images(CASE))

        def answer(**changed):
            other = model.clone(**changed)

            def loss(params):
                logits, _ = other.apply({"params": params}, images)
                return jnp.sum(logits * cases.cotangent(CASE)), logits

            return quick.jit(jax.grad(loss, has_aux=True))(variables["params"])

        def segments(params):
            carry, tables = model.apply({"params": params}, images, method="embed")
            for first, number in ((0, 1), (1, 2)):
                carry, _ = model.apply({"params": params}, carry, tables, first=first, count=number, method="encode")
            return carry.tokens, model.apply({"params": params}, images)[1]["tokens"][-1]

        return answer(), answer(unroll=3), answer(remat="full"), quick.jit(segments)(variables["params"])


@pytest.mark.slow
def test_scan_unrolled_and_remat_agree(answers):
    plain, unrolled, remat, _ = answers
    for other in (unrolled, remat):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), plain, other)
    grads = flatten({"params": plain[0]})
    for name in ("pe_norms/scale", "pe_norm_last/scale", "pos_embed"):
        assert np.abs(grads[name]).max() > 1e-3


@pytest.mark.slow
def test_segments_in_sequence_equal_one_run(answers):
    np.testing.assert_allclose(*answers[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("join", ["pvg", "mpvg"])
@pytest.mark.parametrize("family", quick.first(0, ["deit_ti", "vit_lite_6_4", "swin_t"]))
def test_names_in_pytorch(join, family):
    sizes = {"width": 32, "depth": 3, "heads": 2, "image_size": 16, "pool": "gap"}
    if family == "swin_t":
        sizes = {"image_size": 24, "patch_size": 2, "width": 8, "depths": (2, 1), "heads": (2, 4), "window_size": 3}
    model = models.create(family, join=join, **sizes)
    names = round_trip(model)
    prefix = "classifier." if family == "vit_lite_6_4" else ""
    if family != "swin_t":
        normed = {int(name.split("blocks.")[1][0]) for name in names if ".pe_norm." in name}
        assert normed == {1, 2}
    assert (f"{prefix}pe_norm_last.weight" in names) == (join == "mpvg")
    for source in ("default", join):
        probe = models.create(family, join=source, **sizes)
        found = infer(lambda model: files.stored_shapes(names, model), probe)[0]
        other = {"pvg": "lape", "mpvg": "mpvg"}[join] if family == "swin_t" and source == "default" else join
        assert found.joining == other


@pytest.mark.slow
def test_a_lape_is_not_taken_for_a_pvg():
    names = round_trip(tiny(join="lape", pool="gap", depth=3))
    for join in ("default", "pvg", "lape"):
        probe = tiny(join=join, pool="gap", depth=3)
        assert infer(lambda model: files.stored_shapes(names, model), probe)[0].joining == "lape"


@pytest.mark.slow
def test_it_begins_from_a_default_model():
    source, model = tiny(join="default", pool="gap", depth=3), tiny(join="mpvg", pool="gap", depth=3)
    theirs = random_variables(source)
    result, moved = transfer.transfer(theirs, source, random_variables(model), model, "norm1")
    assert {path.split("/")[0] for path in moved.initialised} == {"pe_norms", "pe_norm_last"}
    norm1 = theirs["params"]["blocks"]["norm1"]["scale"]
    np.testing.assert_array_equal(result["params"]["pe_norms"]["scale"], norm1[1:])
    np.testing.assert_array_equal(result["params"]["pe_norm_last"]["scale"], theirs["params"]["norm"]["scale"])


def test_layers_of_the_norms():
    ids, _ = layer_ids(tiny(join="mpvg", pool="gap", depth=3).param_shapes())
    assert (list(ids["pe_norms"]["scale"]), ids["pe_norm_last"]["scale"]) == ([2, 3], 4)


@pytest.mark.parametrize("pe", quick.first(1, ["learnable", "sincos_1d"]))
def test_mpvg_folds_into_pvg(pe):
    with jax.enable_x64(True):
        model = create(dataclasses.replace(CASE, pe=pe))
        variables = random_variables(model, np.float64)
        folded, constants = port.fold(variables, model)
        images = jnp.asarray(cases.images(CASE))
        before, after = (m.apply(v, images)[0] for m, v in ((model, variables), (folded, constants)))
    assert folded.joining == "pvg"
    assert {path for path in flatten(variables) if path not in flatten(constants)} == {
        "pe_norm_last/bias",
        "pe_norm_last/scale",
    }
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())
    with pytest.raises(UserError, match="join='pvg' does not say how its PE norms fold: only 'lape', 'lape_sharing'"):
        port.fold(constants, folded)


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        ("deit_ti", {}, "join='pvg' has no class token: it needs pool='gap', not 'token'"),
        ("deit_ti_distilled", {}, "join='pvg' has no class token: it needs pool='gap', not 'token'"),
        ("cct_7_3x1", {}, "join='pvg' has no class token: it needs pool='gap', not 'seq'"),
        ("deit_ti", {"pool": "gap", "depth": 1}, "join='pvg' gives its PE to the blocks behind the first, and depth=1"),
        ("deit_ti", {"pool": "gap", "pe": "none"}, "join='pvg' delivers an absolute position table, and pe='none'"),
        ("ceit_ti", {}, "how it would pool the tokens of a CeiT is not published"),
        ("segmenter_ti_mask", {}, "how it would pool the tokens of a Segmenter is not published"),
        ("vit_adapter_ti", {}, "how it would pool the tokens of a ViTAdapter is not published"),
        ("vit_ti_16", {}, "join='pvg' has parameters that big_vision's ViT has no place for: use a deit_"),
    ],
)
def test_what_it_is_not_defined_for(name, settings, error):
    with pytest.raises(UserError, match=error):
        models.create(name, join="pvg", **settings)


@pytest.mark.slow
def test_what_the_study_sees_of_it():
    """The first layer has the position in its stream, the others beside it, too."""
    model = tiny(join="pvg", pool="gap", depth=3)
    variables = random_variables(model)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, *model.input_shape)), jnp.float32)
    _, out = model.apply(variables, images)
    layers = effective_pe.seen(model, variables, eps=model.ln_eps)
    norm1, w = variables["params"]["blocks"]["norm1"], variables["params"]["pos_embed"]
    first = norm(w, norm1["scale"][0], norm1["bias"][0], model.ln_eps)
    for found, expected in zip(layers, (first, *out["pe"][1:]), strict=True):
        np.testing.assert_allclose(found.table, expected, rtol=0, atol=1e-4)
    entering = activations.layer_inputs(model, variables, images)
    np.testing.assert_allclose(entering[2].stream, out["tokens"][1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(entering[2].placed, w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(entering[2].beside, out["pe"][2], rtol=0, atol=1e-6)
    assert all(layer.pe_energy > 0 for layer in activations.measure(model, variables, [images]))


def test_big_vision_has_no_place_for_it():
    model = tiny(join="pvg", pool="gap", gelu="tanh", depth=3)
    with pytest.raises(UserError, match="big_vision's ViT has nothing like pe_norms/bias, pe_norms/scale"):
        port.to_big_vision(random_variables(model), model)


@pytest.mark.slow
def test_a_run_resumes_and_devices_change_nothing(tmp_path):
    """Whose newest checkpoints are lost: it ends as it did, bit for bit. And with parameters split over devices."""
    settings = {**runs.LEARNING, "model.join": "mpvg", "model.pool": "gap"}
    _, whole = runs.train(tmp_path / "whole", runs.load(**settings))
    again = runs.copy(tmp_path / "whole", tmp_path)
    for step in (33, 44):
        shutil.rmtree(again / "checkpoints" / str(step), ignore_errors=True)
    _, lines = runs.train(again, runs.load(**settings))
    assert lines[-2:] == whole[-2:]
    mesh = {"mesh.data": 4, "mesh.fsdp": 2, "sharding": ((".*", "fsdp(1)"),)}
    _, many = runs.train(tmp_path / "many", runs.load(**settings, **mesh), devices=8)
    assert runs.losses(many) == pytest.approx(runs.losses(whole), rel=1e-5)
