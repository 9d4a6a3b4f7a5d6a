"""How deep each parameter lies, family by family."""

import numpy as np
import pytest

from lape_jax import models
from lape_jax.models import rules
from lape_jax.models.depth import layer_ids
from tests import quick

SMALL = {"width": 8, "heads": 2, "depth": 3, "image_size": 32}
# model, settings; the stack, what has the id 0, and what is as deep as a block outside the stack
FAMILIES = [
    ("deit_ti_distilled", SMALL, "blocks", "patch_embed/.*|cls_token|dist_token|pos_embed", {}),
    ("deit_ti", SMALL | {"join": "unshared"}, "blocks", "patch_embed/.*|cls_token", {"pos_embed": [1, 2, 3]}),
    (
        "deit_ti",
        SMALL | {"pe": "learnable+peg", "peg_blocks": 2},
        "blocks",
        "patch_embed/.*|cls_token|pos_embed",
        {"peg_0/.*": 1, "peg_1/.*": 2},
    ),
    ("vit_lite_7_4", SMALL, "blocks", "patch_embed/.*|cls_token|pos_embed", {}),
    ("cvt_7_4", SMALL, "blocks", "patch_embed/.*|pos_embed", {}),
    ("cct_7_3x2", SMALL, "blocks", "patch_embed/.*|pos_embed", {}),
    ("t2t_vit_7", SMALL, "blocks", "patch_embed/.*|cls_token|pos_embed", {}),
    ("ceit_ti", SMALL, "blocks", "patch_embed/.*|cls_token|pos_embed", {}),
    ("segmenter_ti_mask", SMALL, "blocks", "patch_embed/.*|cls_token|pos_embed", {}),
    ("vit_ti_16", SMALL | {"pool": "tok"}, "Transformer/encoderblock", "embedding/.*|cls|pos_embedding", {}),
    ("vit_ti_16", SMALL | {"pool": "map"}, "Transformer/encoderblock", "embedding/.*|pos_embedding", {}),
    (
        "vit_ti_16",
        SMALL | {"join": "unshared"},
        "Transformer/encoderblock",
        "embedding/.*",
        {"pos_embedding": [1, 2, 3]},
    ),
    ("vit_adapter_ti", SMALL | {"interactions": 3, "deform_heads": 2}, "blocks", "patch_embed/.*|pos_embed", {}),
]


def assert_ids(params, expected, last):
    """`expected` by regex, the rest with the last id; a vector only where the parameter is stacked."""
    ids, found = layer_ids(params)
    assert found == last
    wanted = rules.assign([*expected.items(), (".*", last)], params, setting="expected")
    for name, own in rules.flat_names(ids).items():
        shape = rules.flat_names(params)[name].shape
        assert np.ndim(own) == 0 or (rules.is_stacked(name, shape) and len(own) == shape[0])
    for own, want in zip(rules.flat_names(ids).values(), _in_order(params, wanted), strict=True):
        np.testing.assert_array_equal(own, want)


def _in_order(params, wanted):
    for path in rules.flat_names(params):
        value = wanted
        for part in path.split("/"):
            value = value[part]
        yield value


@pytest.mark.parametrize(("name", "settings", "stack", "first", "others"), quick.first(12, FAMILIES))
def test_ids_of_a_family(name, settings, stack, first, others):
    params = models.create(name, **settings).param_shapes()
    assert_ids(params, {f"{stack}/.*": [1, 2, 3], first: 0, **others}, last=4)


@pytest.mark.parametrize("join", quick.first(1, ["unshared", "lape"]))
def test_swin_counts_through_its_stages(join):
    sizes = {"width": 4, "depths": (2, 1, 3), "heads": (1, 1, 1), "image_size": 32, "window_size": 2}
    params = models.create("swin_t", join=join, **sizes).param_shapes()
    stages = ([1, 2], [3], [4, 5, 6])
    tables = {f"pos_embed_{stage}": ids for stage, ids in enumerate(stages)} if join == "unshared" else {"pos_embed": 0}
    expected = {f"layers_{stage}/.*": ids for stage, ids in enumerate(stages)} | {"patch_embed/.*": 0, **tables}
    assert_ids(params, {**expected, "downsample_0/.*": 2, "downsample_1/.*": 3}, last=7)


def test_a_model_without_blocks():
    assert layer_ids({"stem": np.zeros(3), "head": np.zeros(3)}) == ({"stem": 1, "head": 1}, 1)


def test_a_single_block_and_a_shared_table_of_big_visions():
    params = models.create("vit_ti_16", **SMALL | {"depth": 1}).param_shapes()
    assert layer_ids(params)[0]["pos_embedding"] == 0
