"""Weights with rotary position embeddings: names of naver-ai/rope-vit and of timm, and what a table beside them has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from lape_jax.port.torch import to_timm
from lape_jax.port.transfer import warm_start
from tests.peers import timm
from tests.port.tiny import TINY, identical, random_variables, round_trip, tiny


def test_names_and_shapes_are_the_official_ones():
    """Of DeiT-Ti's size, beside those of DeiT."""
    model = models.create("deit_ti", pe="learnable+rope_mixed", join="default", layer_scale=1e-4)
    plain = models.create("deit_ti", join="default")
    ours, without = (
        {name: x.shape for name, x in port.to_torch(random_variables(m), m).items()} for m in (model, plain)
    )
    scales = {f"blocks.{i}.gamma_{n}": (192,) for i in range(12) for n in (1, 2)}
    places = {"freqs_t_x": (196,), "freqs_t_y": (196,)}
    assert ours == {**without, "pos_embed": (1, 196, 192), "freqs": (2, 12, 96), **places, **scales}


@pytest.mark.parametrize("pe", ["rope_axial", "rope_mixed", "rope_dinov3+peg", "relative+rope_mixed"])
def test_round_trip(pe):
    state_dict = round_trip(tiny(pe=pe))
    assert ("freqs" in state_dict) == ("mixed" in pe)


def test_round_trip_with_lape():
    assert round_trip(tiny(pe="learnable+rope_mixed"))["pos_embed"].shape == (1, 5, 32)


def test_frequencies_by_layer_and_head():
    model = tiny(pe="rope_mixed")  # two layers, two heads of 16
    variables = random_variables(model)
    state_dict = port.to_torch(variables, model)
    ours, head = variables["params"]["blocks"]["attn"]["freqs"], slice(8, 16)
    np.testing.assert_array_equal(state_dict["freqs"][1, 0, head], ours[0, 1, 1])
    np.testing.assert_array_equal(state_dict["freqs_t_x"], [0, 1, 0, 1])
    np.testing.assert_array_equal(state_dict["freqs_t_y"], [0, 0, 1, 1])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_places_of_other_images_are_dropped(prefix):
    model = tiny(pe="rope_mixed")
    variables = random_variables(model)
    state_dict = port.to_torch(variables, model) | {name: np.arange(9.0) for name in ("freqs_t_x", "freqs_t_y")}
    identical(port.from_torch({prefix + name: x for name, x in state_dict.items()}, model), variables)


def test_names_of_timm(tmp_path):
    model = tiny(pe="rope_mixed", layer_scale=0.1)
    variables = random_variables(model)
    port.save(tmp_path / "timm.safetensors", variables, model, format="timm")
    identical(port.load(tmp_path / "timm.safetensors", model), variables)
    with np.load(_npz(tmp_path, variables, model)) as file:
        assert file["rope.freqs"].shape == (2, 2, 2, 8)
        assert "blocks.0.gamma_1" in file
        assert not {"freqs", "freqs_t_x"} & set(file)
    plain = tiny(layer_scale=0.1)
    with np.load(_npz(tmp_path, random_variables(plain), plain)) as file:
        assert {"blocks.1.ls2.gamma", "pos_embed"} <= set(file)
    with pytest.raises(UserError, match="a Swin has no names of its own in timm"):
        port.save(tmp_path / "swin.npz", {}, models.create("swin_t"), format="timm")


def _npz(directory, variables, model):
    port.save(directory / "timm.npz", variables, model, format="timm")
    return directory / "timm.npz"


def test_a_table_of_patches_alone():
    """As rope-vit's: what is added to the class token is nothing, or is added once and for all when it is written."""
    model = tiny(pe="learnable+rope_axial", join="default", distilled=True)
    variables = random_variables(model)
    state_dict = port.to_torch(variables, model)
    params = variables["params"]
    assert state_dict["pos_embed"].shape == (1, 4, 32)
    for index, name in enumerate(("cls_token", "dist_token")):
        np.testing.assert_array_equal(state_dict[name][0, 0], params[name][0, 0] + params["pos_embed"][index])
    again = port.from_torch(state_dict, model)
    assert not again["params"]["pos_embed"][:2].any()
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, *model.input_shape)), jnp.float32)
    expected, found = (model.apply(v, images, method="embed")[0].tokens for v in (variables, again))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert port.to_torch(again, model).keys() == state_dict.keys()
    with pytest.raises(UserError, match=r"pos_embed is \(1, 4, 32\) and should be \(1, 6, 32\)"):
        port.from_torch(state_dict, model.clone(join="shared", pe="learnable"))


@pytest.mark.slow
def test_warm_starts_add_and_drop_frequencies(tmp_path):
    for pe in ("learnable", "learnable+rope_mixed", "rope_mixed"):
        model = tiny(pe=pe, join="default")
        port.save(tmp_path / f"{pe}.npz", random_variables(model), model)
    added = start(tmp_path / "learnable.npz", tiny(pe="learnable+rope_mixed"))
    assert {"blocks/attn/freqs"} == {path for path in added.initialised if "pe_norm" not in path}
    dropped = start(tmp_path / "rope_mixed.npz", tiny(pe="learnable"))
    assert dropped.dropped == ("blocks/attn/freqs",)
    kept = start(tmp_path / "learnable+rope_mixed.npz", tiny(pe="learnable+rope_mixed", image_size=32))
    assert "blocks/attn/freqs" in kept.loaded
    assert kept.resized == ("pos_embed",)


def start(path, model):
    return warm_start(path, model, random_variables(model))[1]


@pytest.mark.slow
def test_folding_leaves_them_alone():
    with jax.enable_x64(True):
        model = models.create("deit_ti", **{**TINY, "pe": "learnable+relative+rope_mixed", "dtype": "float64"})
        variables = random_variables(model, np.float64)
        folded, constants = port.fold(variables, model)
        images = jnp.asarray(np.random.default_rng(5).normal(size=(2, *model.input_shape)))
        before, after = (m.apply(v, images)[0] for m, v in ((model, variables), (folded, constants)))
    np.testing.assert_array_equal(flatten(constants)["blocks/attn/freqs"], flatten(variables)["blocks/attn/freqs"])
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pe", "side"),
    [
        ("vit_small_patch16_rope_224", "rope_axial", 96),
        ("vit_small_patch16_rope_mixed_224", "rope_mixed", 160),
        ("vit_small_patch16_rope_ape_224", "learnable+rope_axial", 160),
        ("vit_small_patch16_rope_mixed_ape_224", "learnable+rope_mixed", 96),
    ],
)
def test_as_timm(name, pe, side):
    """Its float32 angles are what keeps a float64 model from ours: float32's digits are all that can agree."""
    library = timm()
    import torch

    torch.manual_seed(0)
    theirs = library.create_model(name, img_size=side, depth=3, num_classes=7, init_values=0.5).double().eval()
    images = np.random.default_rng(0).standard_normal((2, side, side, 3))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    sizes = {"depth": 3, "num_classes": 7, "image_size": side, "layer_scale": 1e-5}
    model = models.create("deit_s", pe=pe, join="default", dtype="float64", **sizes)
    with jax.enable_x64(True):
        variables = port.from_torch(theirs.state_dict(), model)
        found = jax.jit(lambda v, x: model.apply(v, x)[0])(variables, jnp.asarray(images))
        written = {name: torch.from_numpy(np.asarray(x)) for name, x in to_timm(variables, model).items()}
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    again = library.create_model(name, img_size=side, depth=3, num_classes=7, init_values=0.5)
    again.load_state_dict(written, strict=True)
