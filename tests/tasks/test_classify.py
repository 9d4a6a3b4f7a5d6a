"""Loss and metrics of classification on numbers worked out by hand, and how they treat mask, ties and NaN."""

import functools
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lape_jax.tasks import classify
from tests.quick import jit

LN3, LN4 = math.log(3), math.log(4)


@functools.cache
def cross_entropy(smoothing):
    return jit(functools.partial(classify.cross_entropy, smoothing=smoothing))


@pytest.mark.parametrize(
    ("logits", "label", "smoothing", "expected"),
    [
        ([0, LN3, -1000], 0, 0.0, LN4),  # p = 1/4, 3/4, 0
        ([0, LN3, -1000], 1, 0.0, LN4 - LN3),
        ([5, 5, 5], 2, 0.0, LN3),
        ([1000, 0, 0], 1, 0.0, 1000),
        # t = 0.7 + 0.1, 0.1, 0.1 of -log p = (ln 4, ln 2, ln 4)
        ([0, math.log(2), 0], 0, 0.3, 0.9 * LN4 + 0.1 * math.log(2)),
        ([0, math.log(2), 0], 1, 0.3, 0.2 * LN4 + 0.8 * math.log(2)),
    ],
)
def test_cross_entropy_by_hand(logits, label, smoothing, expected):
    losses = cross_entropy(smoothing)(np.asarray([logits], np.float32), np.asarray([label]))
    np.testing.assert_allclose(losses, [expected], rtol=1e-5)


in_top = jit(classify.in_top, static_argnums=2)
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("logits", "label", "rank"),  # rank: the smallest k for which the label is in the top k, or None
    [
        ([1, 4, 2, 3], 1, 1),
        ([1, 4, 2, 3], 3, 2),
        ([1, 4, 2, 3], 0, 4),
        ([2, 2, 2, 2], 0, 1),  # ties: the lower class wins
        ([2, 2, 2, 2], 2, 3),
        ([2, 3, 3, 1], 2, 2),
        ([2, 3, 3, 1], 0, 3),
        ([INF, 0, INF, 0], 2, 2),
        ([-INF, 0, -INF, 0], 2, 4),
        ([NAN, 1, 2, 3], 3, 2),  # another's NaN may be larger
        ([NAN, NAN, NAN, 0], 3, 4),
        ([NAN, 1, 2, 3], 0, None),  # a NaN is never right
        ([NAN] * 4, 0, None),
    ],
)
def test_in_top_by_hand(logits, label, rank):
    found = [bool(in_top(np.asarray([logits], np.float32), np.asarray([label]), k)[0]) for k in (1, 2, 3, 4, 5)]
    assert found == [rank is not None and rank <= k for k in (1, 2, 3, 4, 5)]


class Stub:
    """A model whose logits are given by the first pixels' channels times 255, and which remembers how it was called."""

    def __init__(self, heads=1):
        self.heads, self.rngs = heads, None

    def apply(self, variables, images, *, train, rngs=None):
        self.rngs = rngs
        logits = 255 * images[:, 0, 0] + variables["params"]["bias"]
        # The second head's are the opposite, and weaker.
        return ((logits, -logits / 2) if train and self.heads == 2 else logits), {}


def config(flip=False, smoothing=0.0):
    data = SimpleNamespace(flip=flip, mean=(0.0,) * 3, std=(1.0,) * 3)
    return SimpleNamespace(data=data, loss=SimpleNamespace(label_smoothing=smoothing))


LOGITS = np.asarray([[0, 0, 9], [7, 7, 7], [0, 5, 0], [3, 2, 1]], np.uint8)
BATCH = {
    "image": np.tile(LOGITS[:, None, None], (1, 1, 2, 1)),
    "label": np.asarray([2, 0, 0, 1], np.int32),  # right, right by a tie, wrong, second
    "mask": np.asarray([1, 1, 0, 1], np.float32),
}
PARAMS = {"bias": np.zeros(3, np.float32)}


def negative_log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1, keepdims=True)) - logits


def test_training_loss_sums_what_the_mask_admits():
    stub = Stub()
    loss = jit(jax.value_and_grad(classify.training_loss(stub, config()), has_aux=True))
    (total, sums), gradient = loss(PARAMS, BATCH, jax.random.key(0))
    expected = negative_log_softmax(LOGITS)[[0, 1, 3], [2, 0, 1]].sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert {name: float(value) for name, value in sums.items()} == {"loss": float(total), "top1": 2, "examples": 3}
    probabilities = np.exp(-negative_log_softmax(LOGITS))
    one_hot = np.eye(3)[BATCH["label"]]
    np.testing.assert_allclose(gradient["bias"], (probabilities - one_hot)[[0, 1, 3]].sum(axis=0), rtol=1e-5, atol=1e-6)
    assert set(stub.rngs) == {"dropout"}


def test_training_loss_smooths_labels():
    total, _ = jit(classify.training_loss(Stub(), config(smoothing=0.3)))(PARAMS, BATCH, jax.random.key(0))
    losses = negative_log_softmax(LOGITS)
    smooth = 0.7 * losses[np.arange(4), BATCH["label"]] + 0.3 * losses.mean(axis=1)
    np.testing.assert_allclose(total, smooth[[0, 1, 3]].sum(), rtol=1e-6)


def test_two_heads_learn_by_the_mean_of_their_losses_and_vote_by_their_sum():
    total, sums = jit(classify.training_loss(Stub(heads=2), config()))(PARAMS, BATCH, jax.random.key(0))
    rows, labels = [0, 1, 3], [2, 0, 1]
    heads = (LOGITS.astype(float), LOGITS / -2)
    expected = sum(negative_log_softmax(head)[rows, labels].sum() for head in heads) / 2
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert int(sums["top1"]) == 2


@pytest.mark.parametrize("flip", [False, True])
def test_images_are_flipped_if_the_config_says_so(flip):
    image = np.zeros((64, 1, 2, 3), np.uint8)
    image[:, :, 0, 0] = 1  # the left pixel is for class 0, the right one for class 1
    image[:, :, 1, 1] = 1
    batch = {"image": image, "label": np.zeros(64, np.int32), "mask": np.ones(64, np.float32)}
    loss = jit(classify.training_loss(Stub(), config(flip=flip)))
    right = int(loss(PARAMS, batch, jax.random.key(0))[1]["top1"])
    assert right == int(loss(PARAMS, batch, jax.random.key(0))[1]["top1"])
    assert 16 < right < 48 if flip else right == 64


def test_evaluation_sums_what_the_mask_admits():
    sums = jit(classify.evaluation_sums(Stub(heads=2), config(flip=True, smoothing=0.3)))(PARAMS, BATCH)
    expected = negative_log_softmax(LOGITS)[[0, 1, 3], [2, 0, 1]].sum()  # neither smoothed nor flipped
    assert set(sums) == {*classify.METRICS, "examples"}
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-6)
    assert (int(sums["top1"]), int(sums["top5"]), int(sums["examples"])) == (2, 3, 3)
