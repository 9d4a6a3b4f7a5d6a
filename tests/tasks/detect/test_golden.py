"""Training against tests/reference/torch_detection_losses.py in float64: assignment, targets, losses, all gradients."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.nn.detection import anchors
from lape_jax.tasks.detect import assign, loss, masks, targets
from lape_jax.tasks.detect.sample import Sample
from tests.models.compare import assert_close
from tests.quick import cases, jit
from tests.reference import mask_rcnn_cases
from tests.reference.mask_rcnn_cases import CASES, HEADS

TOLERANCE = 1e-9
GOLDEN = pathlib.Path(__file__).parents[2] / "models/golden/mask_rcnn.npz"
IDLE = ("backbone.up.bias", "backbone.spm.fc1.bias")  # their gradients are rounding
PLACES = 4  # for objects
NAMES = {"rpn_class": "rpn_cls", "rpn_box": "rpn_bbox", "class": "cls", "box": "bbox", "mask": "mask"}
case_by_name = cases(CASES, first=["default-96x128"])


@functools.cache
def golden(name):
    return mask_rcnn_cases.golden(GOLDEN, name)


def padded(values, count=PLACES):
    return np.concatenate([values, np.zeros((count - len(values), *values.shape[1:]), values.dtype)])


@functools.cache
def batch(case):
    """With places for objects that hold none, and the boxes in float64."""
    found = {name: [] for name in ("boxes", "labels", "valid", "masks")}
    for image in range(2):
        boxes, bitmaps = case.boxes(image), case.bitmaps(image)
        compact = [masks.compact(*one) for one in zip(bitmaps, boxes, strict=True)]
        found["boxes"].append(padded(boxes))
        found["labels"].append(padded(case.labels(image).astype(np.int32)))
        found["valid"].append(np.arange(PLACES) < len(boxes))
        found["masks"].append(padded(np.array(compact, np.uint8).reshape(-1, *masks.SHAPE)))
    stacked = {name: np.stack(values) for name, values in found.items()}
    return stacked | {"image": case.images(), "size": np.int32(case.sizes), "mask": np.ones(2, np.float32)}


def all_anchors(case):
    sizes = anchors.sizes(*case.at)
    every = [anchors.anchors(*size, stride, np.float64) for size, stride in zip(sizes, anchors.STRIDES, strict=True)]
    return [(*size, 3) for size in sizes], np.concatenate([level.reshape(-1, 4) for level in every])


@case_by_name
def test_assignments(case):
    given, expected = batch(case), golden(case.name)
    with jax.enable_x64(True):
        grids, every = all_anchors(case)
        for image in range(2):
            objects = [jnp.asarray(given[name][image]) for name in ("boxes", "valid")]
            valid = jit(lambda size: assign.valid_anchors(grids, anchors.STRIDES, size))(given["size"][image])
            found = jit(assign.assign, static_argnames="limits")(every, valid, *objects, limits=assign.ANCHORS)
            np.testing.assert_array_equal(found, expected[f"train anchor objects {image}"])
            proposals = padded(expected[f"train proposals {image}"], case.proposals)
            there = np.arange(case.proposals) < len(expected[f"train proposals {image}"])
            _, found = jit(assign.with_objects)(proposals, there, *objects)
            used = np.concatenate([given["valid"][image], there])
            np.testing.assert_array_equal(found[used], expected[f"train region objects {image}"])
            assert (found[~used] == assign.IGNORED).all()


@case_by_name
def test_targets_of_masks(case):
    given, expected = batch(case), golden(case.name)
    for image in range(2):
        own = expected[f"train region objects {image}"][expected[f"train sample regions {image}"]]
        rois = expected[f"train sampled rois {image}"][: len(own)]
        if not len(own):
            assert image == 1
            continue
        with jax.enable_x64(True):
            size = assign.padded(jnp.asarray(case.sizes[image]))
            found = jit(functools.partial(masks.targets, canvas=case.at))(
                given["masks"][image], given["boxes"][image], rois, own.astype(np.int32), size
            )
        np.testing.assert_array_equal(found, expected[f"train mask targets {image}"])
        assert 0.1 < np.mean(found) < 0.9


# ---- Losses and gradients --------------------------------------------------------------------------------------------


def recorded(yes, no, objects):
    """A sample of what the reference has drawn, in 40 places; `objects` of the positives."""
    positives, places = len(yes), np.arange(40)
    index = padded(np.concatenate([yes, no]), 40).astype(np.int32)
    return Sample(index, padded(objects, 40).astype(np.int32), places < positives, places < positives + len(no))


def drawn(case):
    """The anchors and RoIs of the goldens, in our places."""
    expected, given = golden(case.name), batch(case)
    _, every = all_anchors(case)
    some, rois = [], []
    for image in range(2):
        objects = targets.Objects(*(jnp.asarray(given[name][image]) for name in ("boxes", "labels", "valid", "masks")))
        yes, no = (expected[f"train sample {kind} {image}"] for kind in ("anchors", "no_anchors"))
        picked = recorded(yes, no, expected[f"train anchor objects {image}"][yes])
        some.append(targets.of_anchors(picked, jnp.asarray(every), objects))
        yes, no = (expected[f"train sample {kind} {image}"] for kind in ("regions", "no_regions"))
        picked = recorded(yes, no, expected[f"train region objects {image}"][yes])
        candidates = np.concatenate([case.boxes(image), expected[f"train proposals {image}"]])
        rois.append(targets.of_rois(picked, jnp.asarray(candidates), objects, case.shapes.classes))
        count = len(yes) + len(no)
        np.testing.assert_array_equal(rois[-1].boxes[:count], expected[f"train sampled rois {image}"])
        np.testing.assert_array_equal(rois[-1].labels[:count], expected[f"train sampled labels {image}"])
    return tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *images) for images in (some, rois))


def detector(case):
    sizes = case.shapes.backbone
    options = {"width": sizes.width, "depth": sizes.depth, "heads": HEADS, "mlp_ratio": sizes.mlp_ratio}
    options |= {"deform_heads": sizes.deform_heads, "deform_points": sizes.points, "spatial_width": sizes.prior_width}
    options |= {"join": sizes.join, "drop_path": 0.0, "dtype": "float64"}
    options |= {"image_size": tuple(16 * side for side in sizes.table_grid), "num_classes": case.shapes.classes}
    options |= {"channels": case.shapes.channels, "hidden": case.shapes.hidden, "proposals": case.proposals}
    return models.create("mask_rcnn_vit_adapter_ti", pre_nms_train=case.pre_nms_train, **options)


@pytest.mark.slow
@case_by_name
def test_losses_and_gradients(case):
    expected, model = golden(case.name), detector(case)
    with jax.enable_x64(True):
        variables, given = port.from_torch(case.state(), model), {n: jnp.asarray(v) for n, v in batch(case).items()}
        chosen = drawn(case)

        def total(params, collections):
            found = {"params": params, **collections}
            run = functools.partial(model.apply, train=True, sizes=given["size"], mutable=["batch_stats"])
            (_, out), _ = run(found, given["image"])
            ratios, _ = loss.answers(model, found, out, chosen, given)
            together, alone = (
                {name: loss.by_group(ratio, given["mask"], group) / 2 for name, ratio in ratios.items()}
                for group in (0, 1)
            )
            return sum(together.values()), (together, alone)

        collections = {name: tree for name, tree in variables.items() if name != "params"}
        run = jit(jax.value_and_grad(total, has_aux=True))
        (value, (parts, grouped)), gradient = run(variables["params"], collections)
        state = port.to_torch({"params": jax.tree.map(np.asarray, gradient), **collections}, model)
    assert_close("loss", value, expected["train loss"], TOLERANCE)
    for name, theirs in NAMES.items():
        assert_close(name, parts[name], expected[f"train loss_{theirs}"], TOLERANCE)
        assert_close(f"{name} by image", grouped[name], expected[f"train grouped loss_{theirs}"], TOLERANCE)
    ours = mask_rcnn_cases.stored({f"grad {name}": np.asarray(leaf) for name, leaf in state.items()})
    learned = [name for name in expected if name.startswith("grad ")]
    for name in learned:
        if name.removeprefix("grad ") not in IDLE:
            assert_close(name, ours[name], expected[name], TOLERANCE, scale=max(expected[name][0], 1e-4))
    assert len(learned) > 200
