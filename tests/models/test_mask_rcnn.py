"""Mask R-CNN against tests/reference/torch_mask_rcnn.py in float64, what its detections are, and other forms of it."""

import functools
import pathlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.nn.detection.anchors import STRIDES
from lape_jax.nn.detection.roi_align import pooled
from lape_jax.tasks.detect.paste import paste
from tests import quick
from tests.models import families
from tests.models.compare import assert_close
from tests.reference import mask_rcnn_cases
from tests.reference.mask_rcnn_cases import CASES, REGIONS
from tests.reference.mask_rcnn_states import BOX_SIDE, MASK_SIDE

GOLDEN = pathlib.Path(__file__).parent / "golden" / "mask_rcnn.npz"
PASTED = 4  # detections of an image


@pytest.mark.parametrize(
    ("name", "default", "lape"),
    # Of the first, tests/port/test_mask_rcnn.py has every shape.
    quick.first(0, [("mask_rcnn_vit_adapter_ti", 28_068_512, 4_608), ("mask_rcnn_vit_adapter_s", 47_802_368, 9_216)]),
)
def test_published_parameter_counts(name, default, lape):
    model = models.create(name)
    assert (model.joining, model.grid, model.drop_path) == ("lape", (14, 14), 0.1 if "ti" in name else 0.2)
    shapes = model.param_shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == default + lape
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["blocks"]["pe_norm"])) == lape
    parts = {"neck": 2_557_952, "rpn_head": 593_935, "bbox_head": 14_306_705, "mask_head": 2_643_280}
    found = {**shapes, **shapes["roi_head"]}
    if "ti" in name:
        assert {part: sum(leaf.size for leaf in jax.tree.leaves(found[part])) for part in parts} == parts


# ---- Parity ----------------------------------------------------------------------------------------------------------


def per_level(name, maps):
    return {f"{name}{i}": value for i, value in enumerate(maps, start=1)}


def seen(case, model, variables, whole):
    """Detections and what lies between; if `whole`, also with scales, and what the heads say of `REGIONS`. Traced."""
    images, sizes = jnp.asarray(case.images()), jnp.asarray(case.sizes)
    found, out = model.apply(variables, images, sizes=sizes)
    if not whole:
        return [found], out, ()
    scales = jnp.asarray(case.scales)[:, ::-1]  # height first
    scaled = model.apply(variables, out["fpn"], out["proposals"], sizes, scales, method="detect")
    fpn, rois = [map_[:1] for map_ in out["fpn"]], jnp.asarray(REGIONS, jnp.float64)[None]
    heads = {"box features": pooled(fpn[:4], rois, STRIDES[:4], BOX_SIDE)[0]}
    heads["mask features"] = pooled(fpn[:4], rois, STRIDES[:4], MASK_SIDE)[0]
    heads["mask logits"] = model.apply(variables, fpn, rois, method="mask_head")[0]
    return [found, scaled], out, (model.apply(variables, fpn, rois, method="box_head"), heads)


def evaluated(case, whole=True, **settings):
    """What `tests.reference.mask_rcnn_answers.evaluated` has, by the same names; unless `whole`, a part of it."""
    with jax.enable_x64(True):
        model = families.mask_rcnn(case, **settings)
        variables = port.from_torch(case.state(), model)
        detections, out, heads = quick.jit(functools.partial(seen, case, model, whole=whole))(variables)
    answer = per_level("map", out["maps"]) | per_level("fpn", out["fpn"]) | per_level("rpn_logits", out["rpn_logits"])
    answer |= per_level("rpn_deltas", [x.reshape(*x.shape[:3], 3, 4) for x in out["rpn_deltas"]])
    for i, size in enumerate(case.sizes):
        made = {name: np.asarray(value[i]) for name, value in out["proposals"].items()}
        assert_front(made["valid"])
        kinds = {"proposals": "boxes", "proposal scores": "scores"}
        answer |= {f"{name} {i}": made[kind][made["valid"]] for name, kind in kinds.items()}
        for prefix, found, scale in zip(("", "scaled "), detections, ((1, 1), case.scales[i]), strict=False):
            one = {name: np.asarray(value[i]) for name, value in found.items()}
            assert_front(valid := one.pop("valid"))
            assert not any(value[~valid].any() for value in one.values())
            one = {name: value[valid] for name, value in one.items()}
            shape = [round(side / ratio) for side, ratio in zip(size, reversed(scale), strict=True)]
            pairs = list(zip(one["masks"], one["boxes"], strict=True))[:PASTED]
            answer[f"{prefix}pasted {i}"] = np.stack([paste(*pair, *shape) for pair in pairs])
            one["masks"] = np.log(one["masks"]) - np.log1p(-one["masks"])  # logits again
            answer |= {f"{prefix}{name} {i}": value for name, value in one.items()}
    if whole:
        (logits, deltas), regions = heads
        answer |= {"class logits": logits[0], "box deltas": deltas[0]}
        answer |= {f"{name} {j}": value for name, values in regions.items() for j, value in enumerate(values)}
    return {name: np.asarray(value) for name, value in answer.items()}


def assert_front(valid):
    """What is valid comes first."""
    assert np.array_equal(valid, np.arange(len(valid)) < valid.sum())


def assert_same(name, found, expected):
    if np.issubdtype(expected.dtype, np.floating):
        assert_close(name, found, expected, families.TOLERANCE, scale=max(np.abs(expected).max(initial=0), 1e-4))
    else:
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.slow
def test_detections_match_goldens():
    found = mask_rcnn_cases.stored(evaluated(CASES[0], whole=False))
    golden = mask_rcnn_cases.golden(GOLDEN, CASES[0].name)
    assert {"map4", "fpn5", "rpn_deltas1", "proposals 1", "boxes 0", "labels 1", "masks 0", "pasted 1"} < found.keys()
    for name, value in found.items():
        assert_same(name, value, golden[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_evaluation_matches_goldens(case):
    found = mask_rcnn_cases.stored(evaluated(case))
    golden = mask_rcnn_cases.golden(GOLDEN, case.name)
    assert found.keys() == {name for name in golden if not name.startswith(("train ", "grad ", "moved "))}
    for name, value in found.items():
        assert_same(name, value, golden[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_sees_and_proposes_as_goldens_do(case):
    with jax.enable_x64(True):
        model = families.mask_rcnn(case)
        variables = port.from_torch(case.state(), model)
        train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        images, sizes = jnp.asarray(case.images()), jnp.asarray(case.sizes)
        (_, out), moved = quick.jit(train)(variables, images, sizes=sizes)
        state = port.to_torch(jax.tree.map(np.asarray, {"params": variables["params"], **moved}), model)
    answer = per_level("map", out["maps"]) | per_level("fpn", out["fpn"]) | per_level("rpn_logits", out["rpn_logits"])
    for i, valid in enumerate(out["proposals"]["valid"]):
        answer[f"proposals {i}"] = out["proposals"]["boxes"][i][valid]
    answer = {f"train {name}": np.asarray(value) for name, value in answer.items()}
    answer |= {f"moved {name}": value for name, value in state.items() if ".running_" in name}
    found, golden = mask_rcnn_cases.stored(answer), mask_rcnn_cases.golden(GOLDEN, case.name)
    assert sum(name.startswith("moved ") for name in found) == 20
    for name, value in found.items():
        assert_same(name, value, golden[name])


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import mask_rcnn_answers

    ours, theirs = evaluated(case), mask_rcnn_answers.evaluated(case)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_same(name, ours[name], value.numpy())


@pytest.mark.slow
def test_unrolled_it_sees_alike():
    expected = evaluated(CASES[1])
    found = evaluated(CASES[1], unroll=4)
    for name, value in expected.items():
        assert_same(name, found[name], value)


# ---- What is detected ------------------------------------------------------------------------------------------------

TINY = {"width": 8, "depth": 4, "heads": 2, "mlp_ratio": 1.0, "deform_heads": 2, "deform_points": 2, "ffn_ratio": 0.5}
TINY |= {"spatial_width": 4, "drop_path": 0.0, "image_size": 64, "num_classes": 3, "channels": 4, "hidden": 6}
TINY |= {"pre_nms_train": 60, "pre_nms_test": 40, "proposals": 30, "detections": 10}
IMAGES = jnp.asarray(np.random.default_rng(1).standard_normal((2, 64, 64, 3)), jnp.float32)


def tiny(**settings):
    return models.create("mask_rcnn_vit_adapter_ti", **{**TINY, **settings})


@functools.cache
def variables(**settings):
    """None of them at their start; those of the last layers as large as to decide something."""
    model, rng = tiny(**settings), np.random.default_rng(0)
    found = jax.tree.map(
        lambda x: rng.uniform(0.1, 0.4, x.shape).astype(np.float32) * rng.choice([-1, 1, 1], x.shape),
        model.variable_shapes(),
    )
    found["batch_stats"] = jax.tree.map(np.abs, found["batch_stats"])
    return jax.tree.map(lambda x: x.astype(np.float32), found)


@pytest.mark.slow
def test_shapes_and_types():
    model = tiny(dtype="bfloat16")
    anchors = model.anchors(64, 96)
    assert [a.shape for a in anchors] == [(64 // s, 96 // s, 3, 4) for s in (4, 8, 16, 32)] + [(1, 2, 3, 4)]
    assert anchors[0].dtype == np.float32
    found, out = jax.eval_shape(model.apply, variables(), jnp.zeros((2, 64, 96, 3)))
    shapes = {"boxes": (2, 10, 4), "scores": (2, 10), "labels": (2, 10), "masks": (2, 10, 28, 28), "valid": (2, 10)}
    assert {name: value.shape for name, value in found.items()} == shapes
    assert (found["boxes"].dtype, found["masks"].dtype, found["labels"].dtype) == (jnp.float32, jnp.float32, jnp.int32)
    assert [map_.shape for map_ in out["fpn"]] == [(2, *a.shape[:2], 4) for a in anchors]
    assert out["fpn"][0].dtype == jnp.bfloat16
    assert [x.shape[3] for x in out["rpn_logits"] + out["rpn_deltas"]] == 5 * [3] + 5 * [12]
    assert out["proposals"]["boxes"].shape == (2, 30, 4)


@pytest.mark.slow
def test_in_training_there_are_proposals_alone():
    model = tiny()
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    (nothing, out), moved = jax.eval_shape(train, variables(), jnp.zeros((2, 64, 96, 3)))
    assert nothing is None
    assert out["proposals"]["valid"].shape == (2, 30)
    assert set(moved) == {"batch_stats"}
    everything = jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), jnp.zeros((2, 64, 96, 3)))
    assert jax.tree.map(jnp.shape, everything) == jax.tree.map(jnp.shape, model.variable_shapes())


@pytest.mark.slow
def test_proposals_have_no_gradient_and_heads_have():
    model, given = tiny(), variables()
    rois = jnp.asarray([[[3.0, 4, 50, 40], [0, 0, 0, 0]]] * 2)

    def loss(params, which):
        full = {"params": params, "batch_stats": given["batch_stats"]}
        (_, out), _ = model.apply(full, IMAGES, train=True, mutable=["batch_stats"])
        if which == "proposals":
            return jnp.sum(out["proposals"]["boxes"]) + jnp.sum(out["proposals"]["scores"])
        return jnp.sum(model.apply(full, out["fpn"], rois, method=which)[0] ** 2)

    def slopes(params):
        return [jax.grad(loss)(params, which) for which in ("proposals", "box_head", "mask_head")]

    none, box, mask = quick.jit(slopes)(given["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))
    for found, head, other in ((box, "bbox_head", "mask_head"), (mask, "mask_head", "bbox_head")):
        assert all(leaf.any() for leaf in jax.tree.leaves(found["neck"]["fpn_convs_0"]))
        assert found["patch_embed"]["proj"]["kernel"].any()
        assert any(leaf.any() for leaf in jax.tree.leaves(found["roi_head"][head]))
        assert not any(leaf.any() for leaf in jax.tree.leaves((found["roi_head"][other], found["rpn_head"])))


# ---- Other forms of the same -----------------------------------------------------------------------------------------


def assert_detected_alike(found, expected, places, tolerance):
    """Both have the same detections, up to rounding of the `places` that are compared."""
    np.testing.assert_array_equal(found["valid"], expected["valid"])
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    assert np.asarray(expected["valid"]).sum() >= places
    for name in ("boxes", "scores", "masks"):
        np.testing.assert_allclose(found[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_folded_it_gives_the_same():
    model, given = tiny(), variables()
    folded, constants = port.fold(given, model)
    assert "pe_norm" not in constants["params"]["blocks"]
    found, expected = (quick.jit(m.apply)(v, IMAGES)[0] for m, v in ((folded, constants), (model, given)))
    assert_detected_alike(found, expected, 4, 1e-3)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    exact, near = (quick.jit(m.apply)(variables(), IMAGES)[1] for m in (tiny(), tiny(dtype="bfloat16")))
    for name in ("fpn", "rpn_logits", "rpn_deltas"):
        for a, b in zip(near[name], exact[name], strict=True):
            assert 0 < np.abs(np.asarray(a, np.float32) - b).max() < 0.05 * np.abs(b).max()


@pytest.mark.slow
def test_eight_devices_equal_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.enable_x64(True):
        model, given = tiny(dtype="float64"), jax.tree.map(np.float64, variables())
        images = jnp.asarray(np.random.default_rng(2).standard_normal((8, 64, 64, 3)))
        run = quick.jit(lambda v, images: model.apply(v, images)[0])
        expected, found = run(given, images), run(given, jax.device_put(images, jax.NamedSharding(mesh, jax.P("data"))))
    assert found["boxes"].sharding.is_equivalent_to(jax.NamedSharding(mesh, jax.P("data")), 3)
    assert_detected_alike(found, expected, 8, 1e-9)


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"channels": 0}, "channels=0 is not positive"),
        ({"hidden": 0}, "hidden=0 is not positive"),
        ({"proposals": 0}, "proposals=0 is not positive"),
        ({"nms_threshold": 1.5}, r"nms_threshold=1.5 is not a rate in \[0, 1\)"),
        ({"rpn_nms_threshold": -0.1}, "rpn_nms_threshold=-0.1 is not a rate"),
        ({"score_threshold": 1.0}, "score_threshold=1.0 is not a rate"),
        ({"image_size": 240}, "image_size=240 is not divisible by 32"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("mask_rcnn_vit_adapter_ti", **overrides)


def test_wrong_images_are_user_errors():
    with pytest.raises(UserError, match=r"sides are multiples of 32, not 64 x 80"):
        jax.eval_shape(tiny().init, jax.random.key(0), jnp.zeros((1, 64, 80, 3)))
