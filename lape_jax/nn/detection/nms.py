"""Suppression of boxes by better ones that they overlap, as one at a time would be, and with ties by order.

A box is suppressed if its IoU with a better one that is not is greater than the threshold: equal is not. Boxes of no
area overlap nothing. Source: open-mmlab/mmcv 1.4.2, `ops/nms.py`, which keeps groups apart by moving them away from
each other; here they are never compared, and no precision is lost.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lape_jax.nn.detection.boxes import iou


def suppress(boxes: Float[Array, "*l n 4"], valid: Bool[Array, "*l n"], threshold: float) -> Bool[Array, "*l n"]:
    """Which of the boxes, best first, are left.

    kept_j = valid_j and not any_(i < j) (kept_i and IoU_ij > threshold). Started with all that are valid and repeated
    until nothing changes, that is the only solution: the first t boxes are right after t rounds. It takes as many
    rounds as there are boxes in the longest chain, each of which would suppress the next: a few, of 1000 boxes.

    Args:
        boxes: in order.
        valid: boxes that are there; others neither suppress nor are left.
        threshold: of the IoU.
    """
    count = boxes.shape[-2]
    better = jnp.arange(count) < jnp.arange(count)[:, None]
    over = (iou(boxes, boxes, floor=0.0) > threshold) & better  # of j (rows) by i

    def again(state):
        kept, _ = state
        left = valid & ~jnp.any(over & kept[..., None, :], axis=-1)
        return left, jnp.any(left != kept)

    return jax.lax.while_loop(lambda state: state[1], again, (valid, jnp.asarray(True)))[0]


def best_of_classes(
    boxes: Float[Array, "b n k 4"], scores: Float[Array, "b n k"], threshold: float, at_least: float, count: int
) -> tuple[Int[Array, "b count"], Int[Array, "b count"], Float[Array, "b count"]]:
    """The `count` best pairs of region and class that are left when each class is suppressed by itself.

    `count` times, the best of all that remain is taken, and what it suppresses in its class removed. So no pair is ever
    lost to a limit, however many there are.

    Args:
        boxes: the box of each region, as each class has it.
        scores: the score of each region for each class.
        threshold: of the IoU.
        at_least: scores must be greater than this.
        count: how many pairs are kept.

    Returns:
        Region, class and score of each, best first (of equals that of the first region, then class); where there are
        no more, 0, 0 and -inf.
    """
    columns = jnp.moveaxis(jnp.where(scores > at_least, scores, -jnp.inf), 2, 1)
    choose = functools.partial(_best_of_classes, threshold=threshold, count=count)
    region, label, score = jax.vmap(choose)(jnp.moveaxis(boxes, 2, 1), columns)
    there = score > -jnp.inf
    return jnp.where(there, region, 0), jnp.where(there, label, 0), score


def _best_of_classes(
    boxes: Float[Array, "k n 4"], scores: Float[Array, "k n"], threshold: float, count: int
) -> tuple[Int[Array, " m"], Int[Array, " m"], Float[Array, " m"]]:
    """`best_of_classes` of one image. The best of each class is kept at hand, and changes in one class at a time."""
    classes, regions = scores.shape

    def take(state, _):
        left, highest, where = state
        first = jnp.where(highest == jnp.max(highest), where * classes + jnp.arange(classes), classes * regions)
        label = jnp.argmin(first)
        region, score = where[label], highest[label]
        over = iou(boxes[label], boxes[label, region][None], floor=0.0)[:, 0] > threshold
        column = jnp.where(over | (jnp.arange(regions) == region), -jnp.inf, left[label])
        after = (
            left.at[label].set(column),
            highest.at[label].set(jnp.max(column)),
            where.at[label].set(jnp.argmax(column)),
        )
        return after, (region, label, score)

    start = scores, jnp.max(scores, axis=1), jnp.argmax(scores, axis=1)
    return jax.lax.scan(take, start, length=count)[1]
