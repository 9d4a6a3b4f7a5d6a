"""The region proposal network (Ren et al. 2015, "Faster R-CNN", arXiv:1506.01497)."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from lape_jax.nn.detection.anchors import RATIOS
from lape_jax.nn.detection.coder import decode
from lape_jax.nn.detection.nms import suppress

NORMAL = nn.initializers.normal(0.01)


class ProposalHead(nn.Module):
    """Gives each map a logit for each anchor, that there is an object, and its box relative to the anchor.

    A convolution 3x3 with ReLU and two linear layers, the same for all maps.

    Attributes:
        features: channels in between.
        dtype: type to compute in; what it gives is float32 or better.

    Source: open-mmlab/mmdetection 2.22, `models/dense_heads/rpn_head.py`.
    """

    features: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _h _w c"]]
    ) -> tuple[list[Float[Array, "b _h _w a"]], list[Float[Array, "b _h _w a4"]]]:
        """Logits, an anchor of a pixel each, and deltas, four numbers after the other of each anchor."""
        options = {"dtype": self.dtype, "kernel_init": NORMAL}
        convolution = nn.Conv(self.features, (3, 3), padding=1, name="rpn_conv", **options)
        classify = nn.Dense(len(RATIOS), name="rpn_cls", **options)
        regress = nn.Dense(4 * len(RATIOS), name="rpn_reg", **options)
        full = jnp.promote_types(self.dtype, jnp.float32)
        hidden = [nn.relu(convolution(map_)) for map_ in maps]
        return [classify(x).astype(full) for x in hidden], [regress(x).astype(full) for x in hidden]


class Rule(NamedTuple):
    """Which proposals are made.

    Attributes:
        before: those of each map that have the best scores, before suppression.
        threshold: of the IoU at which one of the same map is suppressed.
        count: the best of all maps together, after it.
    """

    before: int
    threshold: float
    count: int


def propose(
    logits: Sequence[Float[Array, "b _h _w a"]],
    deltas: Sequence[Float[Array, "b _h _w a4"]],
    anchors: Sequence[Float[np.ndarray, "_h _w a 4"]],
    sizes: Shaped[Array, "b 2"],
    rule: Rule,
) -> dict[str, jax.Array]:
    """Boxes that may hold an object: "boxes" (b, count, 4), "scores", "valid" (b, count), best first.

    Of each map the anchors with the best scores (sigmoid of the logits), as boxes cut at the image's borders; those
    that are empty then are dropped, and the others suppressed, map by map. Of equal scores the first comes first: the
    finer map, the upper row. Where there are fewer than `count`, the rest is 0, and not valid.

    Args:
        logits, deltas: see `ProposalHead`.
        anchors: the anchors of the same maps.
        sizes: height and width of the images within their canvas.
    """
    boxes, scores = [], []
    for found in zip(logits, deltas, anchors, strict=True):
        box, score = _of_map(*found, sizes, rule)
        boxes.append(box)
        scores.append(score)
    boxes, scores = jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1)
    if (missing := rule.count - scores.shape[1]) > 0:
        boxes = jnp.pad(boxes, ((0, 0), (0, missing), (0, 0)))
        scores = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    scores, order = jax.lax.top_k(scores, rule.count)
    valid = scores > -jnp.inf
    boxes = jnp.where(valid[..., None], jnp.take_along_axis(boxes, order[..., None], axis=1), 0)
    return {"boxes": boxes, "scores": jnp.where(valid, scores, 0), "valid": valid}


def _of_map(
    logits: Float[Array, "b h w a"],
    deltas: Float[Array, "b h w a4"],
    anchors: Float[np.ndarray, "h w a 4"],
    sizes: Shaped[Array, "b 2"],
    rule: Rule,
) -> tuple[Float[Array, "b k 4"], Float[Array, "b k"]]:
    """Boxes of one map, best first, and their scores; -inf of those that are dropped or suppressed."""
    batch, rows, columns, count = logits.shape
    total = rows * columns * count
    scores = jax.nn.sigmoid(logits).reshape(batch, total)
    scores, order = jax.lax.top_k(scores, min(rule.before, total))
    chosen = jnp.take_along_axis(deltas.reshape(batch, total, 4), order[..., None], axis=1)
    boxes = decode(jnp.asarray(anchors.reshape(total, 4), chosen.dtype)[order], chosen, sizes=sizes)
    there = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    return boxes, jnp.where(suppress(boxes, there, rule.threshold), scores, -jnp.inf)
