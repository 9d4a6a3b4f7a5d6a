"""Semantic segmentation: cross entropy of the pixels with a label, and mIoU from a matrix of confusions.

A batch is {"image": float (b, h, w, c), normalised, "label": int32 (b, h, w), "mask": float32 (b,)}. Labels count from
0; pixels whose label is negative, and all those of images whose mask is not positive, are neither learned nor counted.

A model has logits for patches (`out["masks"]` of `lape_jax.models.segmenter.Segmenter`), which are upsampled to those
of pixels: 157 MB per image of 512 x 512 pixels and 150 classes. So they are made for some rows at a time, in training
and in evaluation, and never for a batch.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int32, Integer, UInt8

from lape_jax.augment.photometric import normalise
from lape_jax.tasks.segment import sliding
from lape_jax.tasks.segment.scene import PADDING

SUMS = ("loss", "right", "pixels", "examples")  # of training
METRICS = ("miou", "mean_accuracy", "pixel_accuracy")  # of evaluation, in percent
MEANS = ("valid", "all")
AUXILIARY = 0.4  # weight of the loss of an auxiliary head (open-mmlab/mmsegmentation, `upernet_r50.py`)
_STRIP = 16  # rows of pixels whose logits exist at a time in training
_EXACT = jax.lax.Precision.HIGHEST  # a TPU would round to bfloat16, a GPU to tf32


def training_means(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the training steps that `sums` covers: loss in nats, accuracy over labelled pixels in percent."""
    return {
        "train/loss": sums["loss"] / max(sums["examples"], 1.0),
        "train/pixel_accuracy": 100 * sums["right"] / max(sums["pixels"], 1.0),
    }


def describe(results: Mapping[str, float]) -> str:
    """An evaluation in a line."""
    parts = [
        f"mIoU {results['val/miou']:.2f}%  mean accuracy {results['val/mean_accuracy']:.2f}%  "
        f"pixel accuracy {results['val/pixel_accuracy']:.2f}%"
    ]
    if "val/ema_miou" in results:
        parts.append(f"EMA mIoU {results['val/ema_miou']:.2f}%")
    return "  ".join([*parts, f"({results['val/examples']} images)"])


# ---- Training --------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Float[Array, "b k h w"], labels: Int[Array, "b h w"]) -> Float[Array, "b h w"]:
    """-log softmax(logits)_label, in float32 or better; 0 where the label is negative."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(labels >= 0, jax.nn.logsumexp(logits, axis=1) - _own(logits, labels), 0)


def _own(logits: Float[Array, "b k h w"], labels: Int[Array, "b h w"]) -> Float[Array, "b h w"]:
    """The logit of the label, 0 where that is negative: by comparison, as the gradient of a gather is a scatter."""
    classes = jnp.arange(logits.shape[1])[:, None, None]
    return jnp.sum(jnp.where(labels[:, None] == classes, logits, 0), axis=1)


def pixel_sums(masks: Float[Array, "b r c k"], labels: Int[Array, "b h w"]) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The summed cross entropy of the logits that `masks` are upsampled to, and how many of their maxima are right.

    Bilinear, as the model's own upsampling of images of whole patches. It goes through strips of rows; the gradient
    makes each strip's logits a second time, rather than keep them. Classes come before rows and columns in them: on a
    CPU that takes 0.6 of the time that classes last take, and a TPU would fill up 150 classes to 256.
    """
    height, width = labels.shape[1:]
    rows = next(rows for rows in range(min(_STRIP, height), 0, -1) if height % rows == 0)
    down, right = (
        jnp.asarray(sliding.resized(np.eye(patches), side), masks.dtype)
        for patches, side in zip(masks.shape[1:3], (height, width), strict=True)
    )
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # a TPU's default is bfloat16

    @jax.checkpoint
    def strip(masks, first):
        part = jax.lax.dynamic_slice_in_dim(down, first, rows)
        logits = product("wc,bkhc->bkhw", right, product("hr,brck->bkhc", part, masks))
        labelled = jax.lax.dynamic_slice_in_dim(labels, first, rows, axis=1)
        largest = _own(logits, labelled) >= logits.max(axis=1)  # no argmax, which CPUs are slow at
        count = (largest & (labelled >= 0)).sum(dtype=jnp.int32)
        return cross_entropy(logits, labelled).sum(), count

    def add(sums, first):
        return jax.tree.map(jnp.add, sums, strip(masks, first)), None

    zeros = jnp.zeros((), jnp.promote_types(masks.dtype, jnp.float32)), jnp.zeros((), jnp.int32)
    return jax.lax.scan(add, zeros, jnp.arange(0, height, rows))[0]


def training_loss(model: Any, mean_over: str) -> Callable:
    """The loss of one batch, as a function that can be differentiated.

    It maps (params, collections, batch, key) to (summed loss, ({"loss", "right", "pixels", "examples"} sums,
    collections as they are afterwards)). "pixels" are those with a label, and "right" those of them whose label has
    the largest logit. The loss of the batch is the sum divided by "examples".

    Args:
        model: gives `out["masks"]`, and of an auxiliary head `out["aux"]`, whose loss counts AUXILIARY; the images
            consist of whole patches.
        mean_over: "valid" counts the pixels with a label as examples (PyTorch's CrossEntropyLoss with ignore_index);
            "all" those without, too, and their loss is 0 (MMSegmentation).
    """

    def loss(params, collections, batch, key):
        variables, rngs = {"params": params, **collections}, {"dropout": key}
        (_, out), moved = model.apply(variables, batch["image"], train=True, rngs=rngs, mutable=["batch_stats"])
        counted = batch["mask"] > 0
        labels = jnp.where(counted[:, None, None], batch["label"], PADDING)
        total, right = pixel_sums(out["masks"], labels)
        if "aux" in out:
            total += AUXILIARY * pixel_sums(out["aux"], labels)[0]
        pixels = (labels >= 0).sum(dtype=jnp.int32)
        examples = pixels if mean_over == "valid" else counted.sum(dtype=jnp.int32) * labels[0].size
        sums = {"loss": total, "right": right, "pixels": pixels, "examples": examples}
        return total, ({name: value.astype(jnp.float32) for name, value in sums.items()}, {**collections, **moved})

    return loss


# ---- Evaluation, in windows, bands and tiles: see lape_jax.tasks.segment.evaluate ------------------------------------


def patch_logits(model: Any, config: Any) -> Callable:
    """The function (variables, windows, uint8 (n, h, w, c)) -> logits of their patches (n, rows, columns, k).

    There are as many rows and columns as in a window of full size; those beyond what a smaller one has are 0.
    """
    grid = model.grid_of((1, *model.input_shape))

    def logits(variables, windows: UInt8[Array, "n h w c"]) -> Float[Array, "n r c2 k"]:
        _, out = model.apply(variables, normalise(windows, config.data.mean, config.data.std), train=False)
        missing = [(0, full - had) for full, had in zip(grid, out["masks"].shape[1:3], strict=True)]
        return jnp.pad(out["masks"], ((0, 0), *missing, (0, 0)))

    return logits


def add_window(
    band: Float[Array, "r w k"],
    masks: Float[Array, "n r c k"],
    index: Integer[Any, ""],
    columns: Float[Array, "w c"],
    first: Bool[Any, ""],
) -> Float[Array, "r w k"]:
    """band + masks[index] columns^T, or without the band if this is the `first` window of it.

    A band is a row of windows as far as it reaches into a tile: rows of patches, but columns of pixels. `columns` says
    how the window's patches contribute to these, see `lape_jax.tasks.segment.sliding.weights`.
    """
    window = masks[index].astype(band.dtype)
    return jnp.where(first, 0, band) + jnp.einsum("rck,wc->rwk", window, columns, precision=_EXACT)


def add_band(
    votes: Float[Array, "h w k"],
    logits: Float[Array, "h w k"],
    matrix: Int32[Array, "k k"],
    band: Float[Array, "r w k"],
    rows: Float[Array, "h r"],
    labels: Int32[Array, "h w"],
    last: Bool[Any, ""],
    final: Bool[Any, ""],
) -> tuple[Float[Array, "h w k"], Float[Array, "h w k"], Int32[Array, "k k"], Int32[Array, "h w"]]:
    """A tile with one band more: (votes, logits + rows band, matrix, classes with the most votes so far).

    If it is the `last` band of a view (a scale, mirrored or not), the softmax of the logits is added to the votes, and
    the logits are 0 afterwards. If it is also that of the `final` view, the classes are counted in the matrix, and the
    votes are 0 afterwards, ready for the next tile.
    """
    # All is computed each time, as most bands are the last ones; a branch would copy what it returns.
    logits += jnp.einsum("hr,rwk->hwk", rows, band, precision=_EXACT)
    votes += jnp.where(last, jax.nn.softmax(logits), 0)
    predicted = jnp.argmax(votes, axis=-1).astype(jnp.int32)
    matrix += confusion(predicted, jnp.where(final, labels, PADDING), matrix.shape[0])
    return jnp.where(final, 0, votes), jnp.where(last, 0, logits), matrix, predicted


def confusion(predicted: Int32[Array, "*shape"], labels: Int32[Array, "*shape"], k: int) -> Int32[Array, "k k"]:
    """How many pixels of class i (row) were given class j (column); those with a negative label do not count."""
    cell = jnp.where(labels >= 0, labels * k + predicted, k * k)  # outside, where it is dropped
    return jnp.zeros(k * k, jnp.int32).at[cell.ravel()].add(1, mode="drop").reshape(k, k)


def scores(matrix: Integer[np.ndarray, "k k"]) -> dict[str, float | Float64[np.ndarray, " k"]]:
    """What a matrix of `confusion` says, in percent.

    Returns:
        "iou": of each class the pixels that are right / those of the class or given it; NaN if there are none.
        "accuracy": of each class the pixels that are right / those of the class; NaN if there are none.
        "miou", "mean_accuracy": means of these over the classes that have one.
        "pixel_accuracy": all pixels that are right / all pixels.
    """
    matrix = matrix.astype(np.float64)
    right, truth, given = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou, accuracy = _percent(right, truth + given - right), _percent(right, truth)
    return {
        "miou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "pixel_accuracy": float(_percent(right.sum(), matrix.sum())),
        "iou": iou,
        "accuracy": accuracy,
    }


def _percent(part: Any, whole: Any) -> np.ndarray:
    return np.divide(100 * part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
