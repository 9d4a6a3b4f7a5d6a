"""Loss and metrics of classification on numbers worked out by hand, and how they treat mask, ties and NaN."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lape_jax.tasks.classify import loss as classify
from tests.quick import jit

LN3, LN4 = math.log(3), math.log(4)


cross_entropy = jit(classify.cross_entropy)


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        ([0, LN3, -1000], [1, 0, 0], LN4),  # p = 1/4, 3/4, 0
        ([0, LN3, -1000], [0, 1, 0], LN4 - LN3),
        ([5, 5, 5], [0, 0, 1], LN3),
        ([1000, 0, 0], [0, 1, 0], 1000),
        # -log p = (ln 4, ln 2, ln 4)
        ([0, math.log(2), 0], [0.8, 0.1, 0.1], 0.9 * LN4 + 0.1 * math.log(2)),
        ([0, math.log(2), 0], [0.1, 0.8, 0.1], 0.2 * LN4 + 0.8 * math.log(2)),
    ],
)
def test_cross_entropy_by_hand(logits, targets, expected):
    losses = cross_entropy(np.asarray([logits], np.float32), np.asarray([targets], np.float32))
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

    def apply(self, variables, images, *, train, rngs=None, mutable=()):
        self.rngs = rngs
        logits = 255 * images[:, 0, 0] + variables["params"]["bias"]
        if not train:
            return logits, {}
        assert mutable == ["batch_stats"]
        # The second head's are the opposite, and weaker.
        heads = (logits, -logits / 2) if self.heads == 2 else (logits,)
        return (sum(heads) / self.heads, {"heads": heads}), {"batch_stats": images.mean()}


CONFIG = SimpleNamespace(data=SimpleNamespace(mean=(0.0,) * 3, std=(1.0,) * 3))
LOGITS = np.asarray([[0, 0, 9], [7, 7, 7], [0, 5, 0], [3, 2, 1]], np.uint8)
BATCH = {
    "image": np.tile(LOGITS[:, None, None], (1, 1, 2, 1)),
    "label": np.asarray([2, 0, 0, 1], np.int32),  # right, right by a tie, wrong, second
    "mask": np.asarray([1, 1, 0, 1], np.float32),
}
PARAMS = {"bias": np.zeros(3, np.float32)}
COLLECTIONS = {"batch_stats": np.zeros(()), "constants": np.ones(())}


def negative_log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1, keepdims=True)) - logits


def augmented(smoothing=0.0):
    """BATCH as augmentation that changes no pixel hands it over."""
    target = (1 - smoothing) * np.eye(3)[BATCH["label"]] + smoothing / 3
    return BATCH | {"image": BATCH["image"].astype(np.float32) / 255, "target": target.astype(np.float32)}


def test_training_loss_sums_what_the_mask_admits():
    stub = Stub()
    loss = jit(jax.value_and_grad(classify.training_loss(stub), has_aux=True))
    (total, (sums, collections)), gradient = loss(PARAMS, COLLECTIONS, augmented(), jax.random.key(0))
    expected = negative_log_softmax(LOGITS)[[0, 1, 3], [2, 0, 1]].sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert {name: float(value) for name, value in sums.items()} == {"loss": float(total), "top1": 2, "examples": 3}
    probabilities = np.exp(-negative_log_softmax(LOGITS))
    one_hot = np.eye(3)[BATCH["label"]]
    np.testing.assert_allclose(gradient["bias"], (probabilities - one_hot)[[0, 1, 3]].sum(axis=0), rtol=1e-5, atol=1e-6)
    assert set(stub.rngs) == {"dropout"}
    moved = {"batch_stats": augmented()["image"].mean(), "constants": 1}
    assert {name: float(value) for name, value in collections.items()} == pytest.approx(moved)


def test_training_loss_takes_soft_targets():
    total, _ = jit(classify.training_loss(Stub()))(PARAMS, {}, augmented(smoothing=0.3), jax.random.key(0))
    losses = negative_log_softmax(LOGITS)
    smooth = 0.7 * losses[np.arange(4), BATCH["label"]] + 0.3 * losses.mean(axis=1)
    np.testing.assert_allclose(total, smooth[[0, 1, 3]].sum(), rtol=1e-6)


def test_two_heads_learn_by_the_mean_of_their_losses_and_vote_by_their_sum():
    total, (sums, _) = jit(classify.training_loss(Stub(heads=2)))(PARAMS, {}, augmented(), jax.random.key(0))
    rows, labels = [0, 1, 3], [2, 0, 1]
    heads = (LOGITS.astype(float), LOGITS / -2)
    expected = sum(negative_log_softmax(head)[rows, labels].sum() for head in heads) / 2
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert int(sums["top1"]) == 2


def test_evaluation_sums_what_the_mask_admits():
    sums = jit(classify.evaluation_sums(Stub(heads=2), CONFIG))({"params": PARAMS}, BATCH)
    expected = negative_log_softmax(LOGITS)[[0, 1, 3], [2, 0, 1]].sum()
    assert set(sums) == {"top1", "top5", "loss", "examples"}
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-6)
    assert (int(sums["top1"]), int(sums["top5"]), int(sums["examples"])) == (2, 3, 3)
