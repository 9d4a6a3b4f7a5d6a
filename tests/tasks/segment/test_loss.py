"""Loss and scores of segmentation on numbers worked out by hand, and the strips of the loss against all at once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.resize import resize_maps
from lape_jax.tasks.segment import loss as segment
from lape_jax.tasks.segment import sliding
from lape_jax.tasks.segment.scene import IGNORE, PADDING
from tests.quick import jit

LN3, LN4 = math.log(3), math.log(4)

# ---- Cross entropy ---------------------------------------------------------------------------------------------------


def one_row(*logits, labels, dtype=jnp.float32):
    """An image of one row: logits of its pixels (1, classes, 1, pixels), and its labels."""
    return jnp.asarray(logits, dtype).T[None, :, None], jnp.asarray([[labels]])


cross_entropy = jit(segment.cross_entropy)


def test_cross_entropy_by_hand():
    rows = ([0, LN3], [0, LN3], [1000, 0], [-1000, 1000], [5, 5], [0, LN3], [0, LN3])
    found = cross_entropy(*one_row(*rows, labels=[0, 1, 1, 1, 0, IGNORE, PADDING]))
    np.testing.assert_allclose(found[0, 0], [LN4, LN4 - LN3, 1000, 0, math.log(2), 0, 0], rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_float32_at_least():
    found = cross_entropy(*one_row([0, 1], labels=[0], dtype=jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0, 0, 0], math.log(1 + math.e), rtol=1e-6)  # bfloat16 would be 1e-3 off


def test_what_has_no_label_has_no_gradient():
    logits, labels = one_row([0, LN3], [2.0, 1.0], [1e4, -1e4], labels=[0, IGNORE, PADDING])
    gradient = jit(jax.grad(lambda logits: segment.cross_entropy(logits, labels).sum()))(logits)
    np.testing.assert_allclose(gradient[0, :, 0].T, [[-0.75, 0.75], [0, 0], [0, 0]], rtol=1e-5)


# ---- In strips -------------------------------------------------------------------------------------------------------


def whole(masks, labels):
    logits = resize_maps(masks, labels.shape[1:], "bilinear")
    right = jnp.sum((jnp.argmax(logits, -1) == labels) & (labels >= 0))
    return segment.cross_entropy(jnp.moveaxis(logits, -1, 1), labels).sum(), right


def sums_and_gradient(function):
    return jit(jax.value_and_grad(function, has_aux=True))


@pytest.mark.parametrize(("size", "grid"), [((40, 24), (5, 3)), ((12, 12), (3, 3)), ((74, 42), (37, 6))], ids=str)
def test_strips_give_the_sums_of_the_whole(size, grid):
    """In 4 strips of 10 rows, one of 12, and 37 of 2."""
    rng = np.random.default_rng(0)
    masks = rng.standard_normal((2, *grid, 4)).astype(np.float32)
    labels = rng.integers(PADDING, 4, (2, *size)).astype(np.int32)
    (loss, right), gradient = sums_and_gradient(segment.pixel_sums)(masks, labels)
    (expected_loss, expected_right), expected_gradient = sums_and_gradient(whole)(masks, labels)
    assert right == expected_right > 0
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-6 * np.abs(expected_gradient).max())


def test_strips_need_a_fraction_of_the_memory():
    masks, labels = jax.ShapeDtypeStruct((2, 16, 16, 20), jnp.float32), jax.ShapeDtypeStruct((2, 256, 256), jnp.int32)

    def needed(function):
        return sums_and_gradient(function).lower(masks, labels).compile().memory_analysis().temp_size_in_bytes

    logits = 2 * 256 * 256 * 20 * 4
    assert needed(segment.pixel_sums) < logits < needed(whole) / 2


# ---- Training --------------------------------------------------------------------------------------------------------


class Mean:
    """A model without pixels: the logits of patches of 2 x 2 are their mean times a parameter."""

    def apply(self, variables, images, *, train, rngs, mutable):
        assert train
        assert (set(rngs), mutable) == ({"dropout"}, ["batch_stats"])
        b, h, w, _ = images.shape
        patches = images.reshape(b, h // 2, 2, w // 2, 2).mean(axis=(2, 4))
        masks = patches[..., None] * variables["params"]["kernel"]
        return (None, {"masks": masks}), {"batch_stats": variables["batch_stats"] + 1}


PARAMS = {"kernel": jnp.asarray([0.5, -1.0, 2.0])}
COLLECTIONS = {"batch_stats": jnp.asarray(3.0), "constants": jnp.asarray(7.0)}


@functools.cache
def batch():
    rng = np.random.default_rng(1)
    return {
        "image": rng.standard_normal((3, 4, 6, 1)).astype(np.float32),
        "label": rng.integers(PADDING, 3, (3, 4, 6)).astype(np.int32),
        "mask": np.float32([1, 0, 1]),
    }


@pytest.mark.parametrize("mean_over", segment.MEANS)
def test_training_loss(mean_over):
    loss = jit(segment.training_loss(Mean(), mean_over))
    total, (sums, collections) = loss(PARAMS, COLLECTIONS, batch(), jax.random.key(0))
    kept = {name: value[[0, 2]] for name, value in batch().items()}
    patches = kept["image"].reshape(2, 2, 2, 3, 2).mean(axis=(2, 4))[..., None] * np.asarray(PARAMS["kernel"])
    rows, columns = sliding.resized(np.eye(2), 4), sliding.resized(np.eye(3), 6)
    logits = np.einsum("hr,wc,brck->bhwk", rows, columns, patches)
    labelled = kept["label"] >= 0
    own = np.take_along_axis(logits, np.maximum(kept["label"], 0)[..., None], -1)[..., 0]
    expected = (np.log(np.exp(logits).sum(-1)) - own)[labelled].sum()
    np.testing.assert_allclose([total, sums["loss"]], expected, rtol=1e-5)
    assert sums["right"] == (logits.argmax(-1) == kept["label"]).sum()
    assert sums["pixels"] == labelled.sum()
    assert sums["examples"] == (labelled.sum() if mean_over == "valid" else 2 * 4 * 6)
    assert set(sums) == set(segment.SUMS)
    assert {value.dtype for value in sums.values()} == {jnp.dtype("float32")}
    assert collections == {"batch_stats": 4, "constants": 7}


class WithAuxiliary(Mean):
    """And an auxiliary head with one place for the whole image."""

    def apply(self, variables, images, **options):
        (_, out), moved = super().apply(variables, images, **options)
        return (None, out | {"aux": 3 * out["masks"].mean(axis=(1, 2), keepdims=True)}), moved


def test_an_auxiliary_head_counts_four_tenths():
    arguments = PARAMS, COLLECTIONS, batch(), jax.random.key(0)
    alone, (sums, _) = jit(segment.training_loss(Mean(), "valid"))(*arguments)
    both, (more, _) = jit(segment.training_loss(WithAuxiliary(), "valid"))(*arguments)
    expected = 0.0
    for image, labels in zip(batch()["image"][[0, 2]], batch()["label"][[0, 2]], strict=True):
        logits = 3 * image.mean() * np.asarray(PARAMS["kernel"])
        expected += sum(np.log(np.exp(logits).sum()) - logits[label] for label in labels[labels >= 0])
    np.testing.assert_allclose(both - alone, 0.4 * expected, rtol=1e-5)
    assert more["loss"] == both
    assert {name: more[name] for name in ("right", "pixels", "examples")} == {
        name: sums[name] for name in ("right", "pixels", "examples")
    }


def test_a_batch_without_any_label():
    loss = jax.grad(segment.training_loss(Mean(), "valid"), has_aux=True)
    gradient, (sums, _) = jit(loss)(PARAMS, COLLECTIONS, batch() | {"mask": np.zeros(3, np.float32)}, jax.random.key(0))
    assert {name: float(value) for name, value in sums.items()} == dict.fromkeys(segment.SUMS, 0)
    np.testing.assert_array_equal(gradient["kernel"], 0)


def test_training_means():
    means = segment.training_means({"loss": 30.0, "right": 3.0, "pixels": 12.0, "examples": 20.0})
    assert means == {"train/loss": 1.5, "train/pixel_accuracy": 25.0}
    assert segment.training_means(dict.fromkeys(segment.SUMS, 0.0)) == {"train/loss": 0, "train/pixel_accuracy": 0}


def test_describe():
    results = {"val/miou": 38.123, "val/mean_accuracy": 50.0, "val/pixel_accuracy": 78.996, "val/examples": 2000}
    assert segment.describe(results) == "mIoU 38.12%  mean accuracy 50.00%  pixel accuracy 79.00%  (2000 images)"
    ema = segment.describe(results | {"val/ema_miou": 40.0})
    assert ema.endswith("pixel accuracy 79.00%  EMA mIoU 40.00%  (2000 images)")


# ---- Evaluation ------------------------------------------------------------------------------------------------------


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_windows_add_up_to_a_band():
    band, masks, columns = normal(2, 5, 3), normal(2, 2, 3, 3), normal(5, 3)
    add, added = jit(segment.add_window), np.einsum("wc,rck->rwk", columns, masks[1])
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    same(add(band, masks, np.int32(1), columns, np.bool_(False)), band + added)
    same(add(band, masks, np.int32(1), columns, np.bool_(True)), added)


def test_bands_add_up_to_a_tile():
    votes, logits, band, rows = normal(4, 5, 3), 2 * normal(4, 5, 3), normal(2, 5, 3), normal(4, 2)
    labels = np.random.default_rng(0).integers(PADDING, 3, (4, 5)).astype(np.int32)
    matrix = np.arange(9, dtype=np.int32).reshape(3, 3)
    add = jit(segment.add_band)

    def added(last, final):
        return add(votes, logits, matrix, band, rows, labels, np.bool_(last), np.bool_(final))

    total = logits + np.einsum("hr,rwk->hwk", rows, band)
    softmax = np.exp(total) / np.exp(total).sum(-1, keepdims=True)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (labels[labels >= 0], (votes + softmax).argmax(-1)[labels >= 0]), 1)
    for last, final, expected in [
        (False, False, (votes, total, matrix, votes.argmax(-1))),
        (True, False, (votes + softmax, 0, matrix, (votes + softmax).argmax(-1))),
        (True, True, (0, 0, matrix + counts, (votes + softmax).argmax(-1))),
    ]:
        for found, value in zip(added(last, final), expected, strict=True):
            np.testing.assert_allclose(found, np.broadcast_to(value, found.shape), rtol=1e-5, atol=1e-5)


def test_confusion_by_hand():
    labels = np.int32([[0, 0, 1], [2, IGNORE, PADDING], [1, 2, 2]])
    predicted = np.int32([[0, 1, 1], [2, 0, 2], [1, 2, 0]])
    found = jit(segment.confusion, static_argnums=2)(predicted, labels, 3)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 2, 0], [1, 0, 2]])
    assert found.dtype == jnp.int32


def test_scores_by_hand():
    """Class 2 is nowhere in the truth, class 3 nowhere at all."""
    found = segment.scores(np.array([[6, 1, 1, 0], [2, 4, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(found["iou"], [60, 400 / 9, 0, np.nan])
    np.testing.assert_allclose(found["accuracy"], [75, 50, np.nan, np.nan])
    assert found["miou"] == pytest.approx((60 + 400 / 9) / 3)
    assert (found["mean_accuracy"], found["pixel_accuracy"]) == (62.5, 62.5)
    assert set(segment.METRICS) == set(found) - {"iou", "accuracy"}


def test_scores_of_counts_beyond_float32():
    billions = segment.scores(np.array([[2**40, 1], [1, 2**40]]))
    assert billions["pixel_accuracy"] == 100 * 2 * 2**40 / (2 * 2**40 + 2) < 100


def test_scores_of_nothing():
    found = segment.scores(np.zeros((2, 2), np.int64))
    assert all(np.isnan(found[name]) for name in segment.METRICS)
