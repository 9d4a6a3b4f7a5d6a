"""The losses and their gradients against loops, for a model that answers with its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lape_jax.nn.detection import anchors
from lape_jax.parallel import sharding
from lape_jax.tasks.detect import loss as detect
from lape_jax.tasks.detect import masks
from tests.quick import first, jit

CANVAS, CLASSES, IMAGES = (64, 96), 3, 5
SIZES = np.int32([[64, 96], [40, 70], [64, 96], [33, 96], [64, 50]])
GRIDS = anchors.sizes(*CANVAS)


class Table:
    """A model without pixels: the RPN's answers are parameters, those of the heads linear in a RoI's numbers."""

    num_classes = CLASSES

    def anchors(self, height, width):
        shapes = zip(anchors.sizes(height, width), anchors.STRIDES, strict=True)
        return [anchors.anchors(*size, stride) for size, stride in shapes]

    def apply(self, variables, *given, method=None, **options):
        params = variables["params"]
        if method is None:
            return self.answers(variables, *given, **options)
        scale, rois = given
        features = jnp.tanh(scale * rois / 100 - 0.3)
        if method == "box_head":
            deltas = features @ params["deltas"]
            return features @ params["classes"], deltas.reshape(*rois.shape[:2], CLASSES, 4)
        assert method == "mask_head"
        return (features @ params["masks"])[:, :, None, None] * jnp.linspace(-1, 1, 28)[:, None, None] + jnp.full(
            (28, 1), 0.1
        )

    def answers(self, variables, images, *, train, sizes, rngs, mutable):
        assert train
        assert (set(rngs), mutable, sizes.shape) == ({"dropout"}, ["batch_stats"], (len(images), 2))
        params, proposals = variables["params"], variables["constants"]
        count = len(images)
        out = {
            "rpn_logits": [images.mean() + level[:count] for level in params["rpn_logits"]],
            "rpn_deltas": [level[:count] for level in params["rpn_deltas"]],
            "proposals": {"boxes": proposals["boxes"][:count] * params["moved"], "valid": proposals["valid"][:count]},
            "fpn": params["scale"],
        }
        return (None, out), {"batch_stats": variables["batch_stats"] + 1}


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def random_boxes(rng, size, count):
    """Within an image."""
    height, width = size
    corners = rng.uniform(0, 1, (count, 2, 2)) * [width, height]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


@functools.cache
def variables():
    rng = np.random.default_rng(0)
    params = {
        "rpn_logits": [normal(rng, IMAGES, *grid, 3) for grid in GRIDS],
        "rpn_deltas": [normal(rng, IMAGES, *grid, 12) for grid in GRIDS],
        "classes": normal(rng, 4, CLASSES + 1),
        "deltas": normal(rng, 4, 4 * CLASSES),
        "masks": normal(rng, 4, CLASSES),
        "moved": np.float32(1),
        "scale": np.float32(1),
    }
    boxes = batch()["boxes"]
    near = np.concatenate([boxes + normal(rng, *boxes.shape), boxes + 3 * normal(rng, *boxes.shape)], axis=1)
    far = np.stack([random_boxes(rng, size, 600) for size in SIZES])
    proposals = np.concatenate([np.where(batch()["valid"][:, np.r_[:4, :4], None], near, far[:, :8]), far], axis=1)
    proposals[..., 2:] = np.maximum(proposals[..., 2:], proposals[..., :2] + 1)
    valid = np.arange(608) < np.array([[608], [608], [300], [0], [608]])
    valid = valid & (rng.random(valid.shape) < 0.9)
    return params, {"batch_stats": np.float32(3), "constants": {"boxes": np.float32(proposals), "valid": valid}}


@functools.cache
def batch():
    """Four places for objects: image 2 has none, image 3 one and no proposals, image 4 does not count."""
    rng = np.random.default_rng(1)
    boxes = np.stack([random_boxes(rng, size, 4) for size in SIZES])
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 2)
    valid = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    bitmaps = (rng.random((IMAGES, 4, *CANVAS)) < 0.6).astype(np.uint8)
    compact = [[masks.compact(*one) for one in zip(*image, strict=True)] for image in zip(bitmaps, boxes, strict=True)]
    return {
        "image": np.zeros((IMAGES, *CANVAS, 3), np.float32),
        "size": SIZES,
        "boxes": np.where(valid[..., None], boxes, 0),
        "labels": rng.integers(0, CLASSES, valid.shape).astype(np.int32),
        "valid": valid,
        "masks": np.where(valid[..., None, None], np.array(compact), 0).astype(np.uint8),
        "mask": np.float32([1, 1, 1, 1, 0]),
    }


KEY = jax.random.key(5)


@functools.cache
def compiled(group):
    return jit(jax.value_and_grad(detect.training_loss(Table(), group), has_aux=True))


# ---- Slowly ----------------------------------------------------------------------------------------------------------


def encode(start, box, stds):
    (sides, centres), (wanted, aims) = (((b[2:] - b[:2]), (b[:2] + b[2:]) / 2) for b in np.float64([start, box]))
    return np.concatenate([(aims - centres) / sides, np.log(wanted / sides)]) / stds


def softplus(x):
    return np.logaddexp(0, x)


def of_anchors(image, sample, gradient):
    """Sums of an image, and what they are divided by; gradients of the sums are written to `gradient`."""
    params, _ = variables()
    logits = np.concatenate([level[image].ravel() for level in params["rpn_logits"]]).astype(np.float64)
    deltas = np.concatenate([level[image].reshape(-1, 4) for level in params["rpn_deltas"]]).astype(np.float64)
    every = np.concatenate([level.reshape(-1, 4) for level in Table().anchors(*CANVAS)])
    entropy = distance = 0.0
    slope, slopes = np.zeros_like(logits), np.zeros_like(deltas)
    kinds = [0, 0]
    for place in range(256):
        if not sample.used[image, place]:
            continue
        index, positive = sample.index[image, place], sample.positive[image, place]
        kinds[int(positive)] += 1
        entropy += softplus(-logits[index] if positive else logits[index])
        slope[index] = 1 / (1 + np.exp(-logits[index])) - positive
        if positive:
            difference = deltas[index] - encode(every[index], batch()["boxes"][image, sample.own[image, place]], 1)
            distance += np.abs(difference).sum()
            slopes[index] = np.sign(difference)
    gradient["rpn_logits"][image], gradient["rpn_deltas"][image] = slope, slopes
    return {"rpn_class": (entropy, sum(max(n, 1) for n in kinds)), "rpn_box": (distance, sum(max(n, 1) for n in kinds))}


def of_rois(image, sample, wanted):
    params, constants = variables()
    boxes, labels = batch()["boxes"][image], batch()["labels"][image]
    candidates = np.concatenate([boxes, constants["constants"]["boxes"][image]])
    entropy = distance = mask = 0.0
    rois = positives = right = 0
    for place in range(512):
        if not sample.used[image, place]:
            continue
        roi, own = candidates[sample.index[image, place]], sample.own[image, place]
        label = labels[own] if sample.positive[image, place] else CLASSES
        features = np.tanh(roi / np.float64(100) - 0.3)
        logits = features @ params["classes"]
        entropy += np.log(np.exp(logits).sum()) - logits[label]
        rois, right = rois + 1, right + (logits.argmax() == label)
        if label < CLASSES:
            found = (features @ params["deltas"]).reshape(CLASSES, 4)[label]
            distance += np.abs(found - encode(roi, boxes[own], [0.1, 0.1, 0.2, 0.2])).sum()
            map_ = np.repeat((features @ params["masks"])[label] * np.linspace(-1, 1, 28)[:, None] + 0.1, 28, axis=1)
            mask += np.where(wanted[image, place], softplus(-map_), softplus(map_)).mean()
            positives += 1
    return {"class": (entropy, rois), "box": (distance, rois), "mask": (mask, positives)}, right


@functools.cache
def drawn():
    """What the loss draws with KEY, as arrays: anchors, RoIs, and the targets of masks."""
    _, anchor_key, roi_key = jax.random.split(KEY, 3)
    objects = detect.Objects(*(batch()[name] for name in ("boxes", "labels", "valid", "masks")))
    _, constants = variables()

    def draw(objects, proposals, sizes):
        found = detect.draw_rois(roi_key, proposals, objects, CLASSES)
        some = detect.draw_anchors(anchor_key, Table().anchors(*CANVAS), sizes, objects)
        return some, found, detect.mask_targets(found, objects, sizes, CANVAS)

    return jax.tree.map(np.asarray, jit(draw)(objects, constants["constants"], SIZES))


@functools.cache
def slow():
    """{part: [(sum, count) of each counted image]}, right RoIs, and the gradients of the RPN's sums."""
    some, rois, wanted = drawn()
    total = sum(rows * columns * 3 for rows, columns in GRIDS)
    gradient = {"rpn_logits": np.zeros((IMAGES, total)), "rpn_deltas": np.zeros((IMAGES, total, 4))}
    parts, right = {name: [] for name in detect.PARTS}, 0
    for image in range(4):
        found, correct = of_rois(image, rois.sample, wanted)
        right += correct
        for name, ratio in (of_anchors(image, some.sample, gradient) | found).items():
            parts[name].append(ratio)
    return parts, right, gradient


# ---- Against it ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_drawn():
    some, rois, _ = drawn()
    positives = rois.sample.positive.sum(axis=1)
    assert (positives[[0, 1]] > 4).all()
    assert (positives[[2, 3]] == [0, 1]).all()
    used = rois.sample.used.sum(axis=1)
    assert (used[[0, 1]] == 512).all()
    assert 128 < used[2] < 300
    assert used[3] == 1  # its own box
    assert (some.sample.used.sum(axis=1) == 256).all()
    assert (some.sample.positive.any(axis=1)[:3] == [True, True, False]).all()


@pytest.mark.parametrize("group", first(1, [2, 0, 3]))
def test_losses_and_gradients(group):
    """Groups of 2: images 0 and 1, 2 and 3, and one that does not count."""
    params, constants = variables()
    (total, (sums, collections)), gradient = compiled(group)(params, constants, batch(), KEY)
    parts, right, slopes = slow()
    size = group or IMAGES
    groups = [range(start, min(start + size, 4)) for start in range(0, 4, size)]
    expected = dict.fromkeys(detect.PARTS, 0.0)
    scale = np.zeros(IMAGES)
    for own in groups:
        for name, values in parts.items():
            count = sum(values[image][1] for image in own)
            expected[name] += len(own) * sum(values[image][0] for image in own) / max(count, 1)
            if name == "rpn_class":
                scale[list(own)] = len(own) / count
    for name, value in expected.items():
        assert value > 0
        np.testing.assert_allclose(sums[name], value, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose([total, sums["loss"]], sum(expected.values()), rtol=2e-5)
    counts = {"examples": 4, "rois": sum(n for _, n in parts["class"]), "right": right}
    counts["positives"] = sum(n for _, n in parts["mask"])
    assert {name: float(sums[name]) for name in counts} == counts
    assert set(sums) == set(detect.SUMS)
    assert {value.dtype for value in sums.values()} == {jnp.dtype("float32")}
    assert collections["batch_stats"] == 4
    for name, width in (("rpn_logits", 1), ("rpn_deltas", 4)):
        found = np.concatenate([level.reshape(IMAGES, -1, width) for level in gradient[name]], axis=1)
        wanted = slopes[name].reshape(found.shape) * scale[:, None, None]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert gradient["moved"] == 0  # nothing goes through proposals
    assert all(np.abs(gradient[name]).sum() > 0 for name in ("classes", "deltas", "masks", "scale"))


@pytest.mark.parametrize("what", ["no objects", "nothing counts", "no proposals"])
def test_nothing_to_find(what):
    params, constants = variables()
    changed = dict(batch())
    if what == "no objects":
        changed |= {"valid": np.zeros_like(changed["valid"]), "boxes": np.zeros_like(changed["boxes"])}
    if what == "nothing counts":
        changed["mask"] = np.zeros(IMAGES, np.float32)
    if what == "no proposals":
        changed |= {"valid": np.zeros_like(changed["valid"])}
        nowhere = jax.tree.map(np.zeros_like, constants["constants"])
        constants = constants | {"constants": nowhere}
    (total, (sums, _)), gradient = compiled(2)(params, constants, changed, KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((total, sums, gradient)))
    assert [float(sums[name]) for name in ("mask", "box", "rpn_box", "positives")] == [0, 0, 0, 0]
    assert (sums["rpn_class"] > 0) == (what != "nothing counts")
    assert (sums["class"] > 0) == (what == "no objects")
    for name in ("deltas", "masks", "rpn_deltas"):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient[name]))


@pytest.mark.slow
def test_one_device_or_eight():
    params, constants = variables()
    twice = {name: np.concatenate([value, value])[:8] for name, value in batch().items()}

    def doubled(tree):
        return jax.tree.map(lambda leaf: np.concatenate([leaf, leaf])[:8] if np.ndim(leaf) else leaf, tree)

    params = params | {name: doubled(params[name]) for name in ("rpn_logits", "rpn_deltas")}
    constants = constants | {"constants": doubled(constants["constants"])}
    mesh = sharding.data_mesh()
    over = jax.device_put(twice, NamedSharding(mesh, PartitionSpec("data")))
    assert len(over["boxes"].sharding.device_set) == 8
    (alone, (sums, _)), gradient = compiled(2)(params, constants, twice, KEY)
    (total, (others, _)), slopes = compiled(2)(params, constants, over, KEY)
    np.testing.assert_allclose(total, alone, rtol=1e-5)
    assert (others["positives"], others["rois"], others["right"]) == (sums["positives"], sums["rois"], sums["right"])
    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, slopes, gradient)


def test_training_means():
    values = dict.fromkeys(detect.PARTS, 2.0)
    sums = {"loss": 10.0, "examples": 4.0, "right": 30.0, "rois": 40.0, "positives": 8.0, **values}
    means = detect.training_means(sums)
    assert means.pop("train/loss") == 2.5
    assert means.pop("train/accuracy") == 75
    assert means.pop("train/positives") == 2
    assert means == {f"train/loss_{part}": 0.5 for part in detect.PARTS}
    assert set(detect.training_means(dict.fromkeys(detect.SUMS, 0.0)).values()) == {0.0}
