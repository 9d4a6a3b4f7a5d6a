"""Segmenter's state dicts in rstrudel's names and in MMSegmentation's, and warm starts of its encoder."""

import jax
import numpy as np
import pytest

from lape_jax import convert, models, port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from lape_jax.port.resize import resize_table
from lape_jax.port.torch import to_mmseg
from lape_jax.port.transfer import transfer, warm_start
from tests import quick
from tests.port.tiny import identical, random_variables, round_trip

SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "image_size": 16, "patch_size": 4}


def tiny(decoder="mask", **settings):
    return models.create(f"segmenter_ti_{decoder}", **{**SIZES, "num_classes": 5, **settings})


def linear(*names):
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
ENCODER = {"encoder.cls_token", "encoder.pos_embed"} | linear(
    "encoder.patch_embed.proj", "encoder.norm", "encoder.head"
)
ENCODER |= linear(*(f"encoder.blocks.{i}.{part}" for i in range(2) for part in PARTS))
MASK = {f"decoder.{name}" for name in ("cls_emb", "proj_patch", "proj_classes")}
MASK |= linear("decoder.proj_dec", "decoder.decoder_norm", "decoder.mask_norm")
MASK |= linear(*(f"decoder.blocks.{i}.{part}" for i in range(2) for part in PARTS))


def test_names_of_rstrudel():
    state_dict = round_trip(tiny(join="default"))
    assert set(state_dict) == ENCODER | MASK
    assert state_dict["encoder.head.weight"].shape == (1000, 16)
    assert not state_dict["encoder.head.weight"].any()
    assert set(round_trip(tiny("linear", join="default"))) == ENCODER | linear("decoder.head")
    names = set(round_trip(tiny("linear", distilled=True)))
    lape = linear("encoder.blocks.0.pe_norm", "encoder.blocks.1.pe_norm")
    assert names == ENCODER | linear("decoder.head", "encoder.head_dist") | {"encoder.dist_token"} | lape


def test_axes():
    model = tiny()
    variables = random_variables(model)
    state_dict, params = port.to_torch(variables, model), variables["params"]
    for name in ("proj_patch", "proj_classes"):  # matrices, not layers
        np.testing.assert_array_equal(state_dict[f"decoder.{name}"], params["decoder"][name]["kernel"])
    np.testing.assert_array_equal(state_dict["decoder.proj_dec.weight"], params["decoder"]["proj_dec"]["kernel"].T)
    kernel = params["decoder"]["blocks"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(state_dict["decoder.blocks.1.attn.qkv.weight"], kernel[1].T)
    assert state_dict["decoder.cls_emb"].shape == (1, 5, 16)
    theirs = to_mmseg(variables, model)
    np.testing.assert_array_equal(theirs["decode_head.patch_proj.weight"], state_dict["decoder.proj_patch"].T)


@pytest.mark.parametrize(
    "settings",
    [
        {"join": "unshared", "decoder_depth": 3},
        {"pe": "sincos_1d"},
        {"pe": "sincos_2d+relative", "decoder": "linear"},
        {"pe": "learnable+peg", "layer_scale": 0.1},
    ],
    ids=str,
)
def test_round_trips_of_its_variations(settings):
    state_dict = round_trip(tiny(**settings), np.float16)
    if "sincos" in settings.get("pe", ""):
        assert "encoder.pos_embed" in state_dict
        wrong = {**state_dict, "encoder.pos_embed": state_dict["encoder.pos_embed"] + 1}
        with pytest.raises(UserError, match=r"encoder.pos_embed differs by up to 1"):
            port.from_torch(wrong, tiny(**settings))
    if "layer_scale" in settings:
        assert {"encoder.pos_block.0.proj.0.weight", "encoder.blocks.1.gamma_2"} < set(state_dict)
        assert not any("gamma" in name for name in state_dict if "decoder" in name)


def test_as_it_is_published():
    """In a checkpoint under "model", with a head that may be anything, or lack."""
    model = tiny(distilled=True)
    variables = random_variables(model)
    state_dict = port.to_torch(variables, model)
    trained = {name: x + ("head" in name and "encoder" in name) for name, x in state_dict.items()}
    without = {name: x for name, x in state_dict.items() if "head" not in name}
    for given in ({"model": trained, "n_cls": 5}, {f"module.{name}": x for name, x in state_dict.items()}, without):
        identical(variables, port.from_torch(given, model))
    with pytest.raises(
        UserError, match=r"it lacks decoder.blocks.0-1.attn.proj.bias, .*; the model has no decoder.head"
    ):
        port.from_torch(port.to_torch(random_variables(tiny("linear")), tiny("linear")), tiny())


# ---- MMSegmentation --------------------------------------------------------------------------------------------------

MMSEG_PARTS = ("ln1", "ln2", "attn.attn.out_proj", "ffn.layers.0.0", "ffn.layers.1")


def layers(place):
    names = linear(*(f"{place}.layers.{i}.{part}" for i in range(2) for part in MMSEG_PARTS))
    return names | {f"{place}.layers.{i}.attn.attn.in_proj_{leaf}" for i in range(2) for leaf in ("weight", "bias")}


def test_names_of_mmsegmentation():
    backbone = layers("backbone") | {"backbone.cls_token", "backbone.pos_embed"}
    backbone |= linear("backbone.patch_embed.projection", "backbone.ln1")
    head = layers("decode_head") | {f"decode_head.{name}" for name in ("cls_emb", "patch_proj.weight")}
    head |= {"decode_head.classes_proj.weight"}
    head |= linear(*(f"decode_head.{name}" for name in ("dec_proj", "decoder_norm", "mask_norm", "conv_seg")))
    model = tiny(join="default")
    found = to_mmseg(random_variables(model), model)
    assert set(found) == backbone | head
    assert found["decode_head.conv_seg.weight"].shape == (5, 16, 1, 1)
    model = tiny("linear", join="default")
    variables = random_variables(model)
    found = to_mmseg(variables, model)
    assert set(found) == backbone | linear("decode_head.conv_seg")
    kernel = variables["params"]["decoder"]["head"]["kernel"]
    np.testing.assert_array_equal(found["decode_head.conv_seg.weight"][:, :, 0, 0], kernel.T)


@pytest.mark.parametrize(
    "settings", [{}, {"join": "unshared"}, {"decoder": "linear"}, {"pe": "sincos_2d"}, {"join": "default"}], ids=str
)
def test_there_and_back_by_mmsegmentations_names(settings):
    model = tiny(**settings)
    variables = random_variables(model)
    found = to_mmseg(variables, model)
    assert not any(name.startswith(("encoder", "decoder")) for name in found)
    identical(variables, port.from_torch({"meta": {}, "state_dict": found}, model))
    again = to_mmseg(port.from_torch(found, model), model)
    assert {name: x.tobytes() for name, x in again.items()} == {name: x.tobytes() for name, x in found.items()}


def test_what_mmsegmentation_has_no_name_for():
    model = tiny(distilled=True)
    with pytest.raises(UserError, match=r"MMSegmentation's Segmenter has nothing like encoder\.dist_token"):
        to_mmseg(random_variables(model), model)
    vit = models.create("deit_ti", **SIZES)
    with pytest.raises(UserError, match="a ViT has no names in MMSegmentation"):
        to_mmseg(random_variables(vit), vit)
    found = to_mmseg(random_variables(tiny()), tiny())
    with pytest.raises(UserError, match=r"the model has no backbone\.ln9\.weight"):
        port.from_torch({**found, "backbone.ln9.weight": np.zeros(16)}, tiny())


def test_files(tmp_path, capsys):
    model = tiny()
    variables = random_variables(model)
    port.save(tmp_path / "a.safetensors", variables, model, format="mmseg")
    identical(variables, port.load(tmp_path / "a.safetensors", model))
    settings = [f"--model.{key}={value}" for key, value in SIZES.items()]
    argv = [str(tmp_path / name) for name in ("a.safetensors", "b.npz")]
    convert.main([*argv, "--model=segmenter_ti_linear", "--to=lape", *settings])  # the decoder can be seen
    identical(variables, port.load(tmp_path / "b.npz", model))
    assert "Segmenter (join lape, pe learnable, 16 x 16 pixels, 5 classes)" in capsys.readouterr().out
    convert.main([argv[1], argv[0], "--model=segmenter_ti_mask", "--to=mmseg", *settings])
    identical(variables, port.load(argv[0], model))


# ---- Warm starts -----------------------------------------------------------------------------------------------------


def started(path, model, **options):
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())
    variables, moved = warm_start(path, model, initial, **options)
    return flatten(variables), moved


@pytest.mark.parametrize("format", ["torch", "lape"])
@pytest.mark.parametrize("method", quick.first(1, ["bicubic", "bilinear"]))
def test_from_a_classifier_of_smaller_images(tmp_path, format, method):
    """As from DeiT at 224 x 224 to 512 x 512."""
    deit = models.create("deit_ti", **SIZES, num_classes=7, join="default")
    theirs = random_variables(deit)
    port.save(tmp_path / "deit.npz", theirs, deit, format=format)
    theirs = flatten(theirs)
    ours, moved = started(tmp_path / "deit.npz", tiny(image_size=(24, 20), pe_resize=method), pe_norm="norm1")
    assert set(moved.loaded) == set(theirs) - {"pos_embed", "head/kernel", "head/bias"}
    assert (moved.resized, moved.dropped) == (("pos_embed",), ("head/bias", "head/kernel"))
    assert all(path.startswith(("decoder/", "blocks/pe_norm/")) for path in moved.initialised)
    for path in moved.loaded:
        np.testing.assert_array_equal(ours[path], theirs[path])
    expected = resize_table(theirs["pos_embed"], (4, 4), (6, 5), num_prefix_tokens=1, method=method)
    np.testing.assert_array_equal(ours["pos_embed"], expected)
    np.testing.assert_array_equal(ours["blocks/pe_norm/scale"], theirs["blocks/norm1/scale"])
    assert np.all(ours["decoder/cls_emb"] == 0.5)


def test_from_a_distilled_lape_classifier(tmp_path):
    deit = models.create("deit_ti_distilled", **SIZES, num_classes=7, join="lape")
    theirs = random_variables(deit)
    port.save(tmp_path / "deit.safetensors", theirs, deit)
    _, moved = started(tmp_path / "deit.safetensors", tiny("linear", distilled=True))
    assert {"dist_token", "pos_embed", "blocks/pe_norm/scale"} < set(moved.loaded)
    assert set(moved.dropped) == {f"{head}/{leaf}" for head in ("head", "head_dist") for leaf in ("kernel", "bias")}
    _, moved = started(tmp_path / "deit.safetensors", tiny("linear"))  # without the token
    assert {"dist_token", "head_dist/bias"} < set(moved.dropped)
    assert moved.resized == ("pos_embed",)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "lape", "mmseg"])
def test_from_a_segmenter_of_other_classes(tmp_path, format):
    source = tiny(num_classes=9, join="default")
    port.save(tmp_path / "a.npz", random_variables(source), source, format=format)
    _, moved = started(tmp_path / "a.npz", tiny(image_size=32))
    assert {"decoder/proj_patch/kernel", "decoder/blocks/norm1/scale", "blocks/norm1/scale"} < set(moved.loaded)
    assert moved.resized == ("pos_embed",)
    assert moved.dropped == ("decoder/cls_emb", "decoder/mask_norm/bias", "decoder/mask_norm/scale")
    _, moved = started(tmp_path / "a.npz", tiny("linear"))
    assert {"decoder/head/bias", "decoder/head/kernel"} < set(moved.initialised)
    assert "decoder/cls_emb" in moved.dropped


def test_from_a_run_of_a_classifier():
    deit = models.create("deit_ti", **SIZES, num_classes=7)
    model = tiny()
    initial = jax.tree.map(np.zeros_like, random_variables(model))
    _, moved = transfer(random_variables(deit), deit, initial, model)
    assert {"pos_embed", "blocks/pe_norm/scale"} < set(moved.loaded)


def test_another_size_is_named(tmp_path):
    deit = models.create("deit_ti", **{**SIZES, "depth": 3}, num_classes=7)
    port.save(tmp_path / "deit.npz", random_variables(deit), deit)
    with pytest.raises(UserError, match=r"the model has no blocks.2"):
        started(tmp_path / "deit.npz", tiny())
