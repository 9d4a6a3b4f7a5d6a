"""The losses of Mask R-CNN: five sums, each divided by what mmdetection divides it by.

A batch is {"image": float (b, H, W, 3), normalised, 0 beyond "size"; "size": int32 (b, 2), height and width of what is
image; "boxes": float32 (b, g, 4), x1 y1 x2 y2 in pixels; "labels": int32 (b, g); "masks": uint8 (b, g, s, e), see
`lape_jax.tasks.detect.masks`; "valid": bool (b, g), which of the g places hold an object; "mask": float32 (b,)}. Images
whose mask is not positive are not learned from.

Source: open-mmlab/mmdetection 2.22, `models/dense_heads/anchor_head.py`, `models/roi_heads/standard_roi_head.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key

from lape_jax.nn.detection.anchors import STRIDES
from lape_jax.tasks.detect import assign, masks, sample, targets
from lape_jax.tasks.detect.targets import Anchors, Objects, Rois

PARTS = ("rpn_class", "rpn_box", "class", "box", "mask")  # of the loss, each with weight 1
SUMS = ("loss", "examples", *PARTS, "right", "rois", "positives")  # of training
GROUP = 2  # images; see `training_loss`


def training_means(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the training steps that `sums` covers: the loss and its parts, the share of the RoIs that got
    their class in percent, and RoIs per image that lie on an object."""
    examples = max(sums["examples"], 1.0)
    return {
        "train/loss": sums["loss"] / examples,
        **{f"train/loss_{part}": sums[part] / examples for part in PARTS},
        "train/accuracy": 100 * sums["right"] / max(sums["rois"], 1.0),
        "train/positives": sums["positives"] / examples,
    }


class Ratio(NamedTuple):
    """A sum over each image, and what it counts in the number that the sum over a group is divided by."""

    total: Float[Array, " b"]
    count: Float[Array, " b"]


# ---- Sums over images ------------------------------------------------------------------------------------------------


def binary_cross_entropy(logits: Float[Array, "*s"], wanted: Bool[Array, "*s"]) -> Float[Array, "*s"]:
    """-log sigmoid(x) where that is wanted, else -log sigmoid(-x)."""
    return jax.nn.softplus(jnp.where(wanted, -logits, logits))


def _of_class(values: Float[Array, "..."], labels: Integer[Array, "b k"], axis: int) -> Float[Array, "..."]:
    """The values of the label's class, 0 if there is none: by comparison, as the gradient of a gather is a scatter."""
    shape = [1] * values.ndim
    shape[axis] = values.shape[axis]
    labels = labels.reshape(*labels.shape, *(1,) * (values.ndim - 2))
    return jnp.sum(jnp.where(labels == jnp.arange(values.shape[axis]).reshape(shape), values, 0), axis=axis)


def rpn_parts(logits: Float[Array, "b n"], deltas: Float[Array, "b n 4"], drawn: Anchors) -> dict[str, Ratio]:
    """Losses of the RPN's answers for all anchors: cross entropy and L1 at those drawn, by positives + negatives.

    An image without any positives, or negatives, counts one.
    """
    _, _, positive, used = drawn.sample
    chosen = jnp.take_along_axis(logits, drawn.sample.index, axis=1)
    entropy = jnp.where(used, binary_cross_entropy(chosen, positive), 0)
    found = jnp.take_along_axis(deltas, drawn.sample.index[..., None], axis=1)
    distance = jnp.where(positive[..., None], jnp.abs(found - drawn.deltas), 0)
    positives, negatives = (value.sum(axis=1, dtype=jnp.int32) for value in (positive, used & ~positive))
    count = (jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)).astype(entropy.dtype)
    return {"rpn_class": Ratio(entropy.sum(axis=1), count), "rpn_box": Ratio(distance.sum(axis=(1, 2)), count)}


def box_parts(logits: Float[Array, "b k classes"], deltas: Float[Array, "b k c 4"], drawn: Rois) -> dict[str, Ratio]:
    """Losses of the box head's answers: cross entropy, L1 of the true class at positives; both by all RoIs drawn."""
    entropy = jax.nn.logsumexp(logits, axis=-1) - _of_class(logits, drawn.labels, axis=2)
    entropy = jnp.where(drawn.sample.used, entropy, 0)
    distance = jnp.abs(_of_class(deltas, drawn.labels, axis=2) - drawn.deltas)
    distance = jnp.where(drawn.sample.positive[..., None], distance, 0)
    count = drawn.sample.used.sum(axis=1).astype(entropy.dtype)
    return {"class": Ratio(entropy.sum(axis=1), count), "box": Ratio(distance.sum(axis=(1, 2)), count)}


def mask_parts(
    logits: Float[Array, "b k 28 28 c"], wanted: Bool[Array, "b k 28 28"], labels: Integer[Array, "b k"]
) -> dict[str, Ratio]:
    """The loss of the mask head's answers: cross entropy of the true class's map, by pixels of positives.

    Args:
        wanted: see `lape_jax.tasks.detect.masks.targets`.
        labels: the classes of the RoIs; no class of the logits for those that are not positive.
    """
    positive = labels < logits.shape[-1]
    entropy = binary_cross_entropy(_of_class(logits, labels, axis=4), wanted).mean(axis=(2, 3))
    count = positive.sum(axis=1).astype(entropy.dtype)
    return {"mask": Ratio(jnp.where(positive, entropy, 0).sum(axis=1), count)}


def by_group(ratio: Ratio, counted: Float[Array, " b"], group: int) -> Float[Array, ""]:
    """The sum over groups of their images times (their summed total / their summed count); of nothing 0.

    Args:
        counted: 1 for images that count, 0 for the others.
        group: images of a group; the last one may be smaller. 0: all of them are one.
    """
    group = group or len(counted)
    rows = [jnp.pad(value, (0, -len(counted) % group)).reshape(-1, group) for value in (*ratio, counted)]
    total, count, images = ((value * rows[2]).sum(axis=1) for value in rows)
    return jnp.sum(images * total / jnp.maximum(count, 1))


# ---- Training --------------------------------------------------------------------------------------------------------


def draw_anchors(
    key: Key[Array, ""],
    anchors: Sequence[Float[np.ndarray, "_h _w 3 4"]],
    sizes: Integer[Array, "b 2"],
    objects: Objects,
) -> Anchors:
    """The anchors of each image that its RPN learns from."""
    grids = [level.shape[:3] for level in anchors]
    usable = jax.vmap(lambda size: assign.valid_anchors(grids, STRIDES, size))(sizes)
    every = jnp.asarray(np.concatenate([level.reshape(-1, 4) for level in anchors]))
    keys = sample.image_keys(key, len(sizes))
    return jax.vmap(targets.draw_anchors, (0, None, 0, 0))(keys, every, usable, objects)


def draw_rois(key: Key[Array, ""], proposals: Mapping[str, Array], objects: Objects, classes: int) -> Rois:
    """The RoIs of each image that its heads learn from; nothing is differentiated through them."""
    proposals = jax.lax.stop_gradient({name: proposals[name] for name in ("boxes", "valid")})
    keys = sample.image_keys(key, len(objects.boxes))

    def draw(key, boxes, usable, objects):
        return targets.draw_rois(key, boxes, usable, objects, classes)

    return jax.vmap(draw)(keys, proposals["boxes"], proposals["valid"], objects)


def mask_targets(
    drawn: Rois, objects: Objects, sizes: Integer[Array, "b 2"], canvas: tuple[int, int]
) -> Bool[Array, "b k 28 28"]:
    """Of the places that positives take: the first ones."""
    rois, own = drawn.boxes[:, : sample.ROIS.positives], drawn.sample.own[:, : sample.ROIS.positives]

    def wanted(masks_, boxes, rois, own, size):
        return masks.targets(masks_, boxes, rois, own, size, canvas)

    return jax.vmap(wanted)(objects.masks, objects.boxes, rois, own, assign.padded(sizes))


def answers(
    model: Any, variables: Any, out: Mapping[str, Any], drawn: tuple[Anchors, Rois], batch: Mapping[str, Array]
) -> tuple[dict[str, Ratio], Float[Array, "b k classes"]]:
    """The parts of the loss, and the logits of the RoIs, of what was drawn for a batch.

    Args:
        model, variables: a Mask R-CNN.
        out: its named intermediates in training.
        drawn: see `draw_anchors` and `draw_rois`.
        batch: what the heads should answer, see this module.
    """
    anchors, rois = drawn
    wanted = mask_targets(rois, of_batch(batch), batch["size"], batch["image"].shape[1:3])
    firsts, labels = (value[:, : sample.ROIS.positives] for value in (rois.boxes, rois.labels))
    logits, deltas = model.apply(variables, out["fpn"], rois.boxes, method="box_head")
    maps = model.apply(variables, out["fpn"], firsts, method="mask_head")
    rpn_logits = jnp.concatenate([level.reshape(len(level), -1) for level in out["rpn_logits"]], axis=1)
    rpn_deltas = jnp.concatenate([level.reshape(len(level), -1, 4) for level in out["rpn_deltas"]], axis=1)
    rpn = rpn_parts(rpn_logits, rpn_deltas, anchors)
    return rpn | box_parts(logits, deltas, rois) | mask_parts(maps, wanted, labels), logits


def of_batch(batch: Mapping[str, Array]) -> Objects:
    return Objects(batch["boxes"], batch["labels"], batch["valid"], batch["masks"])


def training_loss(model: Any, group: int = GROUP, masks: bool = True) -> Callable:
    """The loss of one batch, as a function that can be differentiated.

    It maps (params, collections, batch, key) to (summed loss, (sums, collections as they are afterwards)). The loss of
    the batch is the sum divided by "examples", the images that count: the mean over groups of the losses of each, in
    which a sum over a group's images is divided by a count over them, see `by_group`. The sums of PARTS are such sums,
    too. "rois" are those drawn, "right" those of them whose class has the largest logit, "positives" those that lie on
    an object.

    Args:
        model: a Mask R-CNN.
        group: images that are normalised together, whatever devices they are on; 0: the whole batch. By default 2, as
            the published recipe had on each of its GPUs, whose losses it averaged: it is the mask's that depends on it,
            as an object's counts more in a group with few. Then a step's loss does not depend on the batch's size.
        masks: whether masks are learned; if not, their part is 0.
    """
    learned = PARTS if masks else tuple(part for part in PARTS if part != "mask")

    def loss(params, collections, batch, key):
        dropout_key, anchor_key, roi_key = jax.random.split(key, 3)
        variables, sizes, objects = {"params": params, **collections}, batch["size"], of_batch(batch)
        (_, out), moved = model.apply(
            variables, batch["image"], train=True, sizes=sizes, rngs={"dropout": dropout_key}, mutable=["batch_stats"]
        )
        anchors = draw_anchors(anchor_key, model.anchors(*batch["image"].shape[1:3]), sizes, objects)
        rois = draw_rois(roi_key, out["proposals"], objects, model.num_classes)
        ratios, logits = answers(model, variables, out, (anchors, rois), batch)  # what is not learned is not computed
        counted = (batch["mask"] > 0).astype(jnp.float32)
        parts = dict.fromkeys(PARTS, jnp.zeros(()))
        parts |= {name: by_group(ratios[name], counted, group) for name in learned}
        used = rois.sample.used & (counted[:, None] > 0)
        sums = parts | {
            "loss": sum(parts.values()),
            "examples": counted.sum(),
            "rois": used.sum(),
            "right": (used & (jnp.argmax(logits, axis=-1) == rois.labels)).sum(),
            "positives": (used & rois.sample.positive).sum(),
        }
        named = {name: value.astype(jnp.float32) for name, value in sums.items()}
        return sums["loss"], (named, {**collections, **moved})

    return loss
