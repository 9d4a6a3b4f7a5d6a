"""Warm starts: what is taken over, resized, initialised and dropped, from files of other models."""

import jax
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from lape_jax.port.resize import resize_table
from lape_jax.port.transfer import transfer as port_transfer
from lape_jax.port.transfer import warm_start
from tests.port.tiny import TINY, random_variables, tiny


@pytest.fixture
def default(tmp_path):
    """(the variables of a default-joined model of 5 classes and 2 x 2 patches, a PyTorch file that holds them)"""
    model = tiny(join="default")
    variables = random_variables(model)
    port.save(tmp_path / "default.npz", variables, model)
    return flatten(variables), tmp_path / "default.npz"


def started(path, model, **options):
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())
    variables, transfer = warm_start(path, model, initial, **options)
    return flatten(variables), transfer


def test_lape_from_default(default):
    theirs, path = default
    ours, transfer = started(path, tiny(join="lape"))
    assert set(transfer.loaded) == set(theirs)
    assert transfer.initialised == ("blocks/pe_norm/bias", "blocks/pe_norm/scale")
    assert transfer.resized == transfer.dropped == ()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    assert np.all(ours["blocks/pe_norm/scale"] == 0.5)


def test_pe_norms_may_start_as_norm1(default):
    theirs, path = default
    ours, _ = started(path, tiny(join="lape"), pe_norm="norm1")
    np.testing.assert_array_equal(ours["blocks/pe_norm/scale"], theirs["blocks/norm1/scale"])
    assert np.all(ours["blocks/pe_norm/bias"] == 0.5)
    ours, _ = started(path, tiny(join="lape", pe_norm="scalar"), pe_norm="norm1")
    np.testing.assert_allclose(ours["blocks/pe_norm/scale"], theirs["blocks/norm1/scale"].mean(-1))


def test_other_classes_and_another_grid(default):
    theirs, path = default
    ours, transfer = started(path, tiny(join="lape", num_classes=7, image_size=(24, 32)))
    assert transfer.resized == ("pos_embed",)
    np.testing.assert_array_equal(
        ours["pos_embed"], resize_table(theirs["pos_embed"], (2, 2), (3, 4), num_prefix_tokens=1)
    )
    assert {"head/bias", "head/kernel"} <= set(transfer.initialised)
    assert transfer.dropped == ("head/bias", "head/kernel")
    assert ours["head/kernel"].shape == (32, 7)


def test_a_distillation_token_gets_a_row_of_its_own(default):
    theirs, path = default
    ours, transfer = started(path, tiny(join="lape", distilled=True))
    np.testing.assert_array_equal(ours["pos_embed"][0], theirs["pos_embed"][0])
    np.testing.assert_array_equal(ours["pos_embed"][1], 0.5)
    np.testing.assert_array_equal(ours["pos_embed"][2:], theirs["pos_embed"][1:])
    assert {"dist_token", "head_dist/kernel"} <= set(transfer.initialised)


def test_without_class_token(default):
    theirs, path = default
    ours, transfer = started(path, tiny(join="lape", pool="gap"))
    assert transfer.dropped == ("cls_token",)
    np.testing.assert_array_equal(ours["pos_embed"], theirs["pos_embed"][1:])


def test_one_table_becomes_those_of_all_layers(default):
    theirs, path = default
    ours, transfer = started(path, tiny(join="unshared"))
    np.testing.assert_array_equal(ours["pos_embed"], [theirs["pos_embed"]] * 2)
    assert "pos_embed" in transfer.resized


def test_a_learned_table_is_dropped_by_a_sinusoid(default):
    _, path = default
    _, transfer = started(path, tiny(join="lape", pe="sincos_2d"))
    assert transfer.dropped == ("pos_embed",)


def test_relative_biases_are_resized(tmp_path):
    model = tiny(pe="relative")
    port.save(tmp_path / "relative.safetensors", random_variables(model), model)
    ours, transfer = started(tmp_path / "relative.safetensors", tiny(pe="relative", image_size=24))
    assert transfer.resized == ("blocks/attn/relative_position_bias_table",)
    assert ours["blocks/attn/relative_position_bias_table"].shape == (2, 25, 2)


def test_lape_to_lape_of_another_size_in_our_own_names(tmp_path):
    model = tiny(join="lape", num_classes=3)
    variables = random_variables(model)
    port.save(tmp_path / "lape.npz", variables, model, format="lape")
    _, transfer = started(tmp_path / "lape.npz", tiny(join="lape", image_size=24))
    assert "blocks/pe_norm/scale" in transfer.loaded
    assert transfer.resized == ("pos_embed",)


def big_vision(**settings):
    return models.create("vit_ti_16", **{**TINY, **settings})


def test_big_visions_pe_norms_may_start_as_its_first_norms(tmp_path):
    model = big_vision(join="default")
    variables = random_variables(model)
    port.save(tmp_path / "bv.npz", variables, model, format="big_vision")
    ours, transfer = started(tmp_path / "bv.npz", big_vision(join="lape"), pe_norm="norm1")
    block = "Transformer/encoderblock"
    assert transfer.initialised == (f"{block}/pe_norm/bias", f"{block}/pe_norm/scale")
    np.testing.assert_array_equal(ours[f"{block}/pe_norm/scale"], flatten(variables)[f"{block}/LayerNorm_0/scale"])


def test_tables_of_all_layers_are_not_one(tmp_path):
    for make in (tiny, big_vision):
        model, file = make(join="unshared"), tmp_path / "unshared.npz"
        port.save(file, random_variables(model), model, format="lape")
        _, transfer = started(file, make(join="default"))
        assert transfer.initialised == transfer.dropped
        assert len(transfer.dropped) == 1


def test_a_sinusoid_of_another_grid(tmp_path):
    """LaPE's 1-D sinusoid, which PyTorch files have without a leading axis."""
    model = tiny(join="default", pe="sincos_1d")
    port.save(tmp_path / "sine.npz", random_variables(model), model)
    _, transfer = started(tmp_path / "sine.npz", tiny(join="lape", pe="sincos_1d", image_size=24))
    assert transfer.initialised == ("blocks/pe_norm/bias", "blocks/pe_norm/scale")


def test_a_sinusoid_that_is_not_in_the_file(tmp_path):
    model = tiny(join="lape", pe="sincos_2d")
    port.save(tmp_path / "sine.npz", random_variables(model), model, format="lape")
    with pytest.raises(UserError, match=r"sine.npz: .*PE norms and no position table: .* not 'learnable'$"):
        started(tmp_path / "sine.npz", tiny(join="lape"))


@pytest.mark.parametrize("changed", [{"depth": 3}, {"width": 16}, {"mlp_ratio": 2.0}])
def test_weights_of_another_size_are_refused(changed):
    """Also where no name betrays them, as between two runs."""
    source, model = tiny(join="lape"), tiny(**changed, join="lape")
    with pytest.raises(UserError, match="another kind or size of model, which differs in "):
        port_transfer(random_variables(source), source, random_variables(model), model)


SWIN = {"width": 8, "depths": (2, 2), "heads": (1, 2), "window_size": 2, "image_size": 16, "patch_size": 2}


def swin(**settings):
    return models.create("swin_t", **{**SWIN, "num_classes": 3, **settings})


@pytest.mark.slow
def test_a_swin_for_other_images(tmp_path):
    """Its file has no table to tell the size of its images, but masks."""
    model = swin(pe="relative")
    port.save(tmp_path / "swin.npz", random_variables(model), model)
    _, transfer = started(tmp_path / "swin.npz", swin(join="lape", image_size=32))
    assert set(transfer.initialised) == {"pos_embed", *(p for p in transfer.initialised if "/pe_norm/" in p)}
    assert transfer.resized == transfer.dropped == ()


@pytest.mark.slow
def test_a_swin_with_a_table_in_each_block(tmp_path):
    model = swin(join="unshared")
    port.save(tmp_path / "swin.npz", random_variables(model), model)
    _, transfer = started(tmp_path / "swin.npz", swin(join="default"))
    assert transfer.dropped == ("pos_embed_0", "pos_embed_1")


def test_what_does_not_fit_is_said(default):
    _, path = default
    with pytest.raises(UserError, match=r"default.npz: .*does not fit the model.*lacks blocks.2"):
        started(path, tiny(join="lape", depth=3))
    with pytest.raises(UserError, match=r"pe_norm='norm2'.*norm1"):
        started(path, tiny(join="lape"), pe_norm="norm2")


def test_the_lines_say_it_all(default):
    _, path = default
    _, transfer = started(path, tiny(join="lape", num_classes=7))
    lines = transfer.lines()
    assert [line.partition(":")[0] for line in lines] == ["loaded", "initialised", "dropped"]
    assert "head/kernel" in lines[1]
