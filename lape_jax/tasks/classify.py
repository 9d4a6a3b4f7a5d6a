"""Image classification: soft-target cross entropy, and exact top-1, top-5 and loss.

A batch is {"image": uint8 (b, h, w, c), "label": int32 (b,), "mask": float32 (b,)}. The mask is 1 for examples that
count and 0 for those that only fill a place (padding at the end of an evaluation, an image that could not be read).
All results are sums over the batch, so that they add up exactly over batches, devices and hosts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lape_jax.augment.geometry import random_flip
from lape_jax.augment.photometric import normalise

METRICS = ("top1", "top5", "loss")


def cross_entropy(logits: Float[Array, "b k"], labels: Int[Array, " b"], smoothing: float = 0.0) -> Float[Array, " b"]:
    """-sum_k t_k log softmax(logits)_k, t = (1 - s) onehot(label) + s / K (label smoothing, Szegedy et al. 2016)."""
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -((1 - smoothing) * picked + smoothing * log_p.mean(axis=1))


def in_top(logits: Float[Array, "b k"], labels: Int[Array, " b"], k: int) -> Bool[Array, " b"]:
    """Whether the label is among the k largest logits; among equals the lower class wins. A NaN is never right."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    later_equal = (logits == own) & (jnp.arange(logits.shape[1]) >= labels[:, None])
    ahead = ~((logits < own) | later_equal)  # written so that NaN, which compares to nothing, counts as ahead
    return (ahead.sum(axis=1) < k) & ~jnp.isnan(own[:, 0])


def training_loss(model: Any, config: Any) -> Callable:
    """The function (params, batch, key) -> (summed loss, {"loss", "top1", "examples"} sums) of one training batch.

    Flips (if `data.flip`) and normalises on the device, all randomness from `key`. Both heads of a distilled model
    learn the labels when there is no teacher: the loss is the mean of the two cross entropies.
    """

    def loss(params, batch, key):
        flip_key, dropout_key = jax.random.split(key)
        images = random_flip(batch["image"], flip_key) if config.data.flip else batch["image"]
        images = normalise(images, config.data.mean, config.data.std)
        logits, _ = model.apply({"params": params}, images, train=True, rngs={"dropout": dropout_key})
        heads = logits if isinstance(logits, tuple) else (logits,)
        losses = [cross_entropy(head, batch["label"], config.loss.label_smoothing) for head in heads]
        mask = batch["mask"]
        total = jnp.sum(mask * sum(losses)) / len(heads)
        right = jnp.sum(mask * in_top(sum(heads), batch["label"], 1))
        return total, {"loss": total, "top1": right, "examples": mask.sum()}

    return loss


def evaluation_sums(model: Any, config: Any) -> Callable:
    """The function (params, batch) -> {"top1", "top5", "loss", "examples"} sums of one evaluation batch."""

    def sums(params, batch):
        images = normalise(batch["image"], config.data.mean, config.data.std)
        logits, _ = model.apply({"params": params}, images, train=False)
        label, mask = batch["label"], batch["mask"]
        return {
            "top1": jnp.sum(mask * in_top(logits, label, 1)),
            "top5": jnp.sum(mask * in_top(logits, label, 5)),
            "loss": jnp.sum(mask * cross_entropy(logits, label)),
            "examples": mask.sum(),
        }

    return sums
