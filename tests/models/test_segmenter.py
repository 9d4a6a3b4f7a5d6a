"""Segmenter: its published sizes, parity with tests/reference/torch_segmenter.py in float64, and images of any size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.models.segmenter import CODE_BASES, Segmenter
from lape_jax.models.vit import ViT
from lape_jax.port import segmenter
from lape_jax.port.resize import resize_table
from tests import quick
from tests.models import families
from tests.reference.segmenter_cases import CASES

TINY = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
HEAD = {192: 193_000, 384: 385_000}  # of the official encoder, for ImageNet, which nothing asks
FIRST = ("lape_sharing-learnable+relative+peg-layernorm-linear-18x27",)
each_case = quick.cases(CASES, FIRST)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("segmenter_ti_mask", 5_876_392, 1_029_996),
        ("segmenter_ti_linear", 5_876_392, 28_950),
        ("segmenter_s_mask", 22_368_616, 4_050_348),
        ("segmenter_s_linear", 22_368_616, 57_750),
    ],
)
def test_published_parameter_counts(name, encoder, decoder):
    model = models.create(name, join="default")
    shapes = model.param_shapes()
    assert count(shapes["decoder"]) == decoder
    assert count(shapes) == encoder - HEAD[model.width] + decoder
    assert (model.num_classes, model.image_size, model.grid) == (150, 512, (32, 32))


@pytest.mark.slow
def test_lape_and_the_distillation_token_add_what_they_add_to_a_vit():
    default, lape = (models.create("segmenter_ti_mask", join=join).param_shapes() for join in ("default", "lape"))
    assert count(lape) - count(default) == 12 * 2 * 192
    assert "pe_norm" not in lape["decoder"]["blocks"]
    distilled = models.create("segmenter_ti_linear", distilled=True).param_shapes()
    plain = models.create("segmenter_ti_linear").param_shapes()
    assert count(distilled) - count(plain) == 2 * 192
    assert count(models.create("segmenter_b_linear").param_shapes()["decoder"]) == 768 * 150 + 150


def test_code_bases():
    fields = {field.name: field.default for field in dataclasses.fields(Segmenter)}
    assert CODE_BASES["rstrudel"].items() <= fields.items()
    assert CODE_BASES["rstrudel"].keys() == CODE_BASES["mmseg"].keys()
    model = models.create("segmenter_ti_mask", **CODE_BASES["mmseg"])
    assert (model.ln_eps, model.decoder_ln_eps, model.drop_path) == (1e-6, 1e-5, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "std"), quick.first(1, [("rstrudel", 64**-0.5), ("mmseg", 0.02)]))
def test_initial_values(code, std):
    sizes = {"image_size": 16, "width": 64, "heads": 1, "depth": 1, "decoder_depth": 1}
    model = models.create("segmenter_ti_mask", **sizes, **CODE_BASES[code])
    decoder = quick.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]["decoder"]
    for name in ("proj_patch", "proj_classes"):
        np.testing.assert_allclose(decoder[name]["kernel"].std(), std, rtol=0.05)
    np.testing.assert_allclose(decoder["cls_emb"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(decoder["proj_dec"]["kernel"].std(), 0.02, rtol=0.05)


# ---- Parity ----------------------------------------------------------------------------------------------------------


@functools.cache
def answer(case):
    """What `torch_segmenter.answer` gives, by our model, compiled whole, which is faster here than one by one."""
    with jax.enable_x64(True):
        model = families.segmenter(case)
        weights = families.weights(model, segmenter)
        params = port.from_torch(weights, model)["params"]
        images, cotangent = jnp.asarray(case.images()), case.cotangent()

        def loss(params):
            logits, out = model.apply({"params": params}, images)
            return jnp.sum(logits * cotangent), {"logits": out["masks"], "pixels": logits}

        gradients, found = jax.tree.map(np.asarray, quick.jit(jax.grad(loss, has_aux=True))(params))
        named = port.to_torch({"params": gradients}, model)
    assert {str(value.dtype) for value in found.values()} == {"float64"}
    return found | {f"grad {name}": named[name] for name in weights}


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("segmenter")) == {case.name for case in CASES}


@each_case
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("segmenter")[case.name])


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import torch_segmenter

    theirs = torch_segmenter.answer(case, families.weights(families.segmenter(case, "float32"), segmenter))
    families.assert_same(answer(case), theirs)


# ---- Images of any size ----------------------------------------------------------------------------------------------


def tiny(decoder="mask", **settings):
    return models.create(f"segmenter_ti_{decoder}", **{**TINY, **settings})


@functools.cache
def variables(decoder="mask", **settings):
    """Random ones of a tiny model."""
    model = tiny(decoder, **settings)
    return jax.tree.map(np.float32, port.from_torch(families.weights(model, segmenter), model))


def images(*size):
    return jax.random.normal(jax.random.key(1), (2, *size, 3))


@functools.cache
def ran(*size, decoder="linear", **settings):
    """Logits and intermediates of a tiny model."""
    model = tiny(decoder, **settings)
    return quick.jit(model.apply)(variables(decoder, **settings), images(*size))


def test_what_is_returned():
    logits, out = ran(18, 27, decoder="mask")
    assert (logits.shape, out["masks"].shape) == ((2, 18, 27, 5), (2, 5, 7, 5))
    assert out["tokens"].shape == (2, 2, 36, 16)  # layers, images, rows, channels
    assert (out["pe"].shape, out["encoded"].shape, out["stem"].shape) == ((2, 36, 16), (2, 36, 16), (2, 36, 16))
    assert out["decoder_tokens"].shape == (2, 2, 40, 16)  # 35 patches and 5 classes
    assert out["pos_embed"].shape == (17, 16)


def test_a_margin_is_zeros_whose_logits_are_cut_off():
    padded = jnp.pad(images(14, 27), ((0, 0), (0, 2), (0, 1), (0, 0)))
    whole, out = quick.jit(tiny("linear").apply)(variables("linear"), padded)
    np.testing.assert_allclose(ran(14, 27)[0], whole[:, :14, :27], rtol=1e-5, atol=1e-5)
    expected = jax.image.resize(out["masks"], (2, 14, 27, 5), "linear", antialias=False)
    np.testing.assert_allclose(ran(14, 27, upsample="image")[0], expected, rtol=1e-5, atol=1e-5)


def test_patches_become_pixels_by_halves_of_a_patch():
    """Two patches of 2 x 2 pixels: the pixels' centres are at -1/4, 1/4, 3/4, 5/4 of patches."""
    logits, out = ran(2, 4, patch_size=2, image_size=2)
    left, right = out["masks"][:, 0, 0], out["masks"][:, 0, 1]
    for column, share in enumerate([0, 0.25, 0.75, 1]):
        for row in range(2):
            np.testing.assert_allclose(logits[:, row, column], (1 - share) * left + share * right, rtol=1e-4, atol=1e-5)


def test_a_table_is_resized_before_the_norms_and_the_token_rows_stay():
    settings = {"distilled": True, "pe_resize": "bicubic"}
    _, out = ran(8, 20, **settings)
    params = variables("linear", **settings)["params"]
    table = resize_table(np.asarray(params["pos_embed"], np.float64), (4, 4), (2, 5), num_prefix_tokens=2)
    for layer in range(2):  # serial: each norm acts on what the last has given
        norm = jax.tree.map(lambda x, layer=layer: np.asarray(x[layer]), params["blocks"]["pe_norm"])
        centred = table - table.mean(-1, keepdims=True)
        table = norm["scale"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + norm["bias"]
        np.testing.assert_allclose(out["pe"][layer], table, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_in_segments_as_in_one_run():
    """With a relative bias and a PEG between the blocks, which have to know the grid."""
    pe = "learnable+relative+peg"

    def segments(model, x):
        grid = model.grid_of(x.shape)
        carry, tables = model.embed(x)
        carry, _ = model.encode(carry, tables, count=1, grid=grid)
        return model.encode(carry, tables, first=1, grid=grid)[0].tokens

    apply = functools.partial(tiny("linear", pe=pe).apply, method=segments)
    found = quick.jit(apply)(variables("linear", pe=pe), images(18, 27))
    np.testing.assert_allclose(found, ran(18, 27, pe=pe)[1]["tokens"][-1], rtol=1e-5, atol=1e-5)


# ---- Training and inference ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rates_act_in_training_alone():
    still = {"drop_path": 0.0, "decoder_dropout": 0.0, "decoder_drop_path": 0.0}
    expected, before = ran(18, 27, decoder="mask")
    for rates in ({}, {"decoder_dropout": 0.5}, {"decoder_drop_path": 0.9}):
        options = {"train": True, "rngs": {"dropout": jax.random.key(2)}}
        apply = quick.jit(functools.partial(tiny(**{**still, **rates}).apply, **options))
        logits, out = apply(variables(), images(18, 27))
        np.testing.assert_allclose(out["encoded"], before["encoded"], rtol=1e-4, atol=1e-4)
        assert (np.abs(logits - expected).max() > 0.1) == bool(rates)


@pytest.mark.slow
def test_remat_and_bfloat16():
    expected, _ = ran(18, 27, decoder="mask")
    model = tiny(remat="attention", unroll=2, dtype="bfloat16")
    logits, out = quick.jit(model.apply)(variables(), images(18, 27))
    assert (logits.dtype, out["masks"].dtype, out["decoder_tokens"].dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    assert 0 < np.abs(logits - expected).mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.slow
def test_folded_it_gives_the_same_logits_for_images_of_its_own_size():
    folded, constants = port.fold(variables("linear"), tiny("linear"))
    logits, _ = quick.jit(folded.apply)(constants, images(15, 16))
    np.testing.assert_allclose(logits, ran(15, 16)[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="constants for 4 x 4 patches and the images have 5 x 4: fold a model whose"):
        folded.apply(constants, images(17, 16))


def test_its_encoder_as_a_classifier():
    model = tiny(distilled=True)
    classifier = model.classifier()
    classifier.check()
    assert type(classifier) is ViT
    ours, theirs = model.param_shapes(), classifier.param_shapes()
    assert ours.keys() - theirs.keys() == {"decoder"}
    assert theirs.keys() - ours.keys() == {"head", "head_dist"}
    assert all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decoder_type": "mesk"}, r"decoder_type='mesk' is not one of mask, linear \(did you mean 'mask'\?\)"),
        ({"pe_resize": "cubic"}, "pe_resize='cubic' is not one of bicubic, bilinear"),
        ({"upsample": "crop"}, "upsample='crop' is not one of padded, image"),
        ({"decoder_depth": 0}, "decoder_depth=0 is not positive"),
        ({"decoder_dropout": 1.0}, r"decoder_dropout=1.0 is not a rate in \[0, 1\)"),
        ({"decoder_drop_path": -0.1}, r"decoder_drop_path=-0.1 is not a rate in \[0, 1\)"),
        ({"decoder_ln_eps": 0}, "decoder_ln_eps=0.0 is not a positive number"),
        ({"projection_std": 0}, "projection_std=0.0 is not a positive number"),
        ({"image_size": 500}, "image_size=500 is not divisible by patch_size=16"),
        ({"pool": "gap"}, "pool='gap' is not one of token"),
        ({"attention": "cudnn"}, "use attention='auto' or 'xla', or decoder_dropout=0"),
        ({"pe": "relative", "join": "lape"}, "delivers an absolute position table, and pe='relative'"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("segmenter_ti_mask", **overrides)


def test_wrong_images_are_user_errors():
    with pytest.raises(UserError, match=r"takes images of 3 channels, and not of shape \(16, 16, 1\)"):
        tiny().apply(variables(), jnp.zeros((1, 16, 16, 1)))
