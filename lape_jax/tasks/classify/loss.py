"""Image classification: soft-target cross entropy, and exact top-1, top-5 and loss.

A batch is {"image": uint8 (b, h, w, c), "label": int32 (b,), "mask": float32 (b,)} before augmentation. The mask is 1
for examples that count and 0 for those that only fill a place (padding at the end of an evaluation, an image that could
not be read).
All results are sums over the batch, so that they add up exactly over batches, devices and hosts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lape_jax.augment import canvas
from lape_jax.augment.photometric import normalise

SUMS = ("loss", "top1", "examples")  # of training


def training_means(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the training steps that `sums` covers: loss in nats, top1 in percent."""
    examples = max(sums["examples"], 1.0)
    return {"train/loss": sums["loss"] / examples, "train/top1": 100 * sums["top1"] / examples}


def describe(results: Mapping[str, float]) -> str:
    """An evaluation in a line."""
    parts = [f"top-1 {results['val/top1']:.2f}%  top-5 {results['val/top5']:.2f}%  loss {results['val/loss']:.4f}"]
    if "val/ema_top1" in results:
        parts.append(f"EMA top-1 {results['val/ema_top1']:.2f}%")
    return "  ".join([*parts, f"({results['val/examples']} images)"])


def cross_entropy(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, " b"]:
    """-sum_k t_k log softmax(logits)_k."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=1)


def in_top(logits: Float[Array, "b k"], labels: Int[Array, " b"], k: int) -> Bool[Array, " b"]:
    """Whether the label is among the k largest logits; among equals the lower class wins. A NaN is never right."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    later_equal = (logits == own) & (jnp.arange(logits.shape[1]) >= labels[:, None])
    ahead = ~((logits < own) | later_equal)  # written so that NaN, which compares to nothing, counts as ahead
    return (ahead.sum(axis=1) < k) & ~jnp.isnan(own[:, 0])


def training_outputs(
    model: Any, params: Any, collections: dict, images: jax.Array, key: jax.Array
) -> tuple[tuple[jax.Array, ...], dict]:
    """The logits of each of the model's heads in training, and its `collections` afterwards, with the batch counted.

    Args:
        params, collections: the model's variables.
        images: (b, h, w, c), normalised.
        key: for dropout and stochastic depth.
    """
    variables = {"params": params, **collections}
    (logits, out), moved = model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    return out.get("heads", (logits,)), {**collections, **moved}


def training_loss(model: Any) -> Callable:
    """The loss of one augmented batch, as a function that can be differentiated.

    It maps (params, collections, batch, key) to (summed loss, ({"loss", "top1", "examples"} sums, collections as they
    are afterwards)), see `training_outputs`. The batch is one of `lape_jax.augment.augmentation`: normalised float
    images, and "target" (b, k), the soft labels. Both heads of a distilled model learn the targets, as there is no
    teacher: the loss is the mean of the two cross entropies. top1 counts the images whose own label, the one before
    mixing, is predicted.
    """

    def loss(params, collections, batch, key):
        heads, collections = training_outputs(model, params, collections, batch["image"], key)
        losses = [cross_entropy(head, batch["target"]) for head in heads]
        mask = batch["mask"]
        total = jnp.sum(mask * sum(losses)) / len(heads)
        right = jnp.sum(mask * in_top(sum(heads), batch["label"], 1))
        return total, ({"loss": total, "top1": right, "examples": mask.sum()}, collections)

    return loss


def evaluation_sums(model: Any, config: Any) -> Callable:
    """The function (variables, batch) -> {"top1", "top5", "loss", "examples"} sums of one evaluation batch.

    Its images may lie on canvases, as for `lape_jax.augment.augmentation.make`.
    """
    data = config.data

    def sums(variables, batch):
        images = batch["image"]
        if "size" in batch:
            images = canvas.eval_crop(images, batch["size"], size=data.image_size, crop_ratio=data.crop_ratio)
        images = normalise(images, data.mean, data.std)
        logits, _ = model.apply(variables, images, train=False)
        label, mask = batch["label"], batch["mask"]
        return {
            "top1": jnp.sum(mask * in_top(logits, label, 1)),
            "top5": jnp.sum(mask * in_top(logits, label, 5)),
            "loss": jnp.sum(mask * cross_entropy(logits, jax.nn.one_hot(label, logits.shape[1]))),
            "examples": mask.sum(),
        }

    return sums
