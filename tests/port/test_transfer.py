"""Warm starts: what is taken over, resized, initialised and dropped, from files of other models."""

import jax
import numpy as np
import pytest

from lape_jax import port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from lape_jax.port.resize import resize_table
from lape_jax.port.transfer import warm_start
from tests.port.tiny import random_variables, tiny


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
    np.testing.assert_array_equal(ours["pos_embed"], resize_table(theirs["pos_embed"], (2, 2), (3, 4), extra_rows=1))
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
    _, path = default
    with pytest.raises(UserError, match="cls_token"):  # the file has a class token, and pool says that there is none
        started(path, tiny(join="lape", pool="gap"))


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


def test_what_does_not_fit_is_said(default):
    _, path = default
    with pytest.raises(UserError, match=r"default.npz: .*does not fit the model.*blocks.2"):
        started(path, tiny(join="lape", depth=3))
    with pytest.raises(UserError, match=r"pe_norm='norm2'.*norm1"):
        started(path, tiny(join="lape"), pe_norm="norm2")


def test_the_lines_say_it_all(default):
    _, path = default
    _, transfer = started(path, tiny(join="lape", num_classes=7))
    lines = transfer.lines()
    assert [line.partition(":")[0] for line in lines] == ["loaded", "initialised", "dropped"]
    assert "head/kernel" in lines[1]
