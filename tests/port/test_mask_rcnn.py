"""State dicts of Mask R-CNN by official names, and what it starts from."""

import hashlib

import jax
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port import mask_rcnn, params
from lape_jax.port.params import flatten
from lape_jax.port.transfer import warm_start, without_head
from tests.port.tiny import random_variables
from tests.quick import first
from tests.reference import mask_rcnn_states as states
from tests.reference.vit_adapter_states import Sizes

SIZES = {"width": 12, "depth": 4, "heads": 2, "mlp_ratio": 2.0}
TINY = {**SIZES, "deform_heads": 2, "deform_points": 2, "spatial_width": 4, "image_size": 32}
TINY |= {"num_classes": 5, "channels": 6, "hidden": 7}
# SHA-256 of the official model's names and shapes, "name shape" a line, sorted
OFFICIAL = "436dd9ed6200c8ff5defba3d8f5cb03affed2bcbbf7e9e638a8b8b326f55d2a2"


def tiny(**settings):
    return models.create("mask_rcnn_vit_adapter_ti", **{**TINY, **settings})


def official_shapes(model):
    found = {entry.names[0]: entry.shape for entry in mask_rcnn.entries(params.shapes(model))}
    return found | {name: array.shape for name, array in mask_rcnn.constants(model).items()}


def test_names_and_shapes_are_the_official_ones():
    found = official_shapes(models.create("mask_rcnn_vit_adapter_ti", join="default"))
    assert len(found) == 452
    lines = "".join(f"{name} {shape}\n" for name, shape in sorted(found.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == OFFICIAL


@pytest.mark.slow
@pytest.mark.parametrize("join", ["default", "lape"])
@pytest.mark.parametrize("size", ["ti", "s"])
def test_names_and_shapes_are_those_of_the_reference(size, join):
    found = official_shapes(models.create(f"mask_rcnn_vit_adapter_{size}", join=join))
    backbone = Sizes(width={"ti": 192, "s": 384}[size], join=join)
    assert found == states.mask_rcnn_shapes(states.Sizes(backbone=backbone))


@pytest.mark.slow
@pytest.mark.parametrize("settings", first(1, [{}, {"join": "unshared"}, {"pe": "sincos_1d+relative+peg"}]), ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_there_and_back_bit_by_bit(suffix, settings, tmp_path):
    model = tiny(**settings)
    variables = random_variables(model)
    port.save(tmp_path / f"w{suffix}", variables, model)
    found = port.load(tmp_path / f"w{suffix}", model)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.slow
def test_columns_of_the_first_layer_are_channel_by_channel_there():
    model = tiny()
    variables = random_variables(model)
    state = port.to_torch(variables, model)
    ours = variables["params"]["roi_head"]["bbox_head"]["shared_fcs_0"]["kernel"]
    theirs = state["roi_head.bbox_head.shared_fcs.0.weight"]
    assert (ours.shape, theirs.shape) == ((49 * 6, 7), (7, 6 * 49))
    for y, x, channel in ((0, 0, 1), (3, 5, 2), (6, 6, 5)):
        np.testing.assert_array_equal(theirs[:, 49 * channel + 7 * y + x], ours[(7 * y + x) * 6 + channel])
    ours, theirs = variables["params"]["roi_head"]["mask_head"]["upsample"]["kernel"], state
    np.testing.assert_array_equal(theirs["roi_head.mask_head.upsample.weight"][:, :, 0, 1], ours[0, 1])


@pytest.mark.slow
def test_the_whole_state_dict_of_a_training_script():
    model = tiny(join="default")
    backbone = Sizes(12, 4, "default", (2, 2), 2.0, 4, 2, 2)
    state = states.random_values(states.Sizes(backbone, channels=6, hidden=7, classes=5), (4, 4))
    variables = port.from_torch({"state_dict": {f"module.{name}": value for name, value in state.items()}}, model)
    found = port.to_torch(variables, model)
    assert found.keys() == state.keys()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_is_missing_is_named():
    model = tiny()
    state = port.to_torch(random_variables(model), model)
    del state["neck.fpn_convs.2.conv.bias"]
    state["roi_head.bbox_head.fc_cls.weight"] = state["roi_head.bbox_head.fc_cls.weight"][:5]
    with pytest.raises(UserError, match=r"lacks neck\.fpn_convs\.2\.conv\.bias.*fc_cls\.weight is \(5, 7\) and should"):
        port.from_torch(state, model)


# ---- Warm starts -----------------------------------------------------------------------------------------------------


def fresh(model):
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())


def started(path, model, **options):
    variables, moved = warm_start(path, model, fresh(model), **options)
    return flatten(variables), moved


@pytest.mark.parametrize("join", first(1, ["default", "lape"]))
def test_from_a_classifier(join, tmp_path):
    deit = models.create("deit_ti", **SIZES, num_classes=7, image_size=48, join=join)
    theirs = random_variables(deit)
    port.save(tmp_path / "deit.npz", theirs, deit)
    theirs = flatten(theirs)
    ours, moved = started(tmp_path / "deit.npz", tiny())
    dropped = {"head/kernel", "head/bias", "cls_token", "norm/scale", "norm/bias"}
    assert set(moved.dropped) == dropped
    assert moved.resized == ("pos_embed",)
    assert set(moved.loaded) == theirs.keys() - dropped - {"pos_embed"}
    own = {"neck/fpn_convs_0/bias", "rpn_head/rpn_cls/kernel", "roi_head/mask_head/upsample/bias", "spm/fc1/bias"}
    assert own < set(moved.initialised)
    for path in moved.loaded:
        np.testing.assert_array_equal(ours[path], theirs[path])


BY_CLASS = {
    f"roi_head/{layer}/{leaf}"
    for layer in ("bbox_head/fc_cls", "bbox_head/fc_reg", "mask_head/conv_logits")
    for leaf in ("kernel", "bias")
}


@pytest.mark.slow
def test_from_a_detector_of_other_classes_and_joining(tmp_path):
    source = tiny(num_classes=9, join="default")
    port.save(tmp_path / "a.safetensors", random_variables(source), source)
    _, moved = started(tmp_path / "a.safetensors", tiny(), pe_norm="norm1")
    assert {"pos_embed", "rpn_head/rpn_cls/kernel", "roi_head/bbox_head/shared_fcs_0/kernel"} < set(moved.loaded)
    assert set(moved.dropped) == BY_CLASS
    assert set(moved.initialised) == BY_CLASS | {"blocks/pe_norm/scale", "blocks/pe_norm/bias"}
    result, moved = started(tmp_path / "a.safetensors", tiny(num_classes=9, image_size=64))
    assert moved.resized == ("pos_embed",)
    assert set(moved.loaded) > BY_CLASS
    # As many classes, by other names:
    model = tiny(num_classes=9)
    result, moved = warm_start(tmp_path / "a.safetensors", model, fresh(model))
    result, moved = without_head(result, moved, fresh(model), "of other classes")
    assert set(moved.initialised) == BY_CLASS | {"blocks/pe_norm/scale", "blocks/pe_norm/bias"}
    assert np.all(result["params"]["roi_head"]["bbox_head"]["fc_cls"]["kernel"] == 0.5)


@pytest.mark.slow
def test_another_size_is_named(tmp_path):
    source = tiny(hidden=4)
    port.save(tmp_path / "a.npz", random_variables(source), source)
    with pytest.raises(UserError, match=r"fc_cls\.weight is \(6, 4\) and should be \(6, 7\)"):
        started(tmp_path / "a.npz", tiny())
