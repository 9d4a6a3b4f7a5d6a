"""What happens to training images and their maps, on the host and on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lape_jax.augment import photometric
from lape_jax.tasks.segment.pipeline import View
from lape_jax.tasks.segment.scene import PADDING


def crop(config: ConfigDict) -> View:
    """How training images and their maps are resized, cropped, mirrored and distorted."""
    data, segment = config.data, config.segment
    return View(
        data.image_size,
        data.channels,
        tuple(segment.scale),
        tuple(segment.scale_range),
        segment.max_class,
        config.augment.flip,
        segment.distort,
        data.orientation,
    )


def describe(config: ConfigDict) -> str:
    """That, in a line."""
    segment = config.segment
    smallest, largest = segment.scale_range
    longest, shortest = segment.scale
    parts = [f"resize into {longest} x {shortest} times {smallest:.3g} to {largest:.3g}"]
    parts += [f"crop of {config.data.image_size} pixels"]
    parts += ["flip"] if config.augment.flip else []
    parts += ["photometric distortion"] if segment.distort else []
    return ", ".join(parts)


def normalising(config: ConfigDict) -> Callable[[dict, jax.Array, Any], dict]:
    """The function (batch, key, mixing) -> batch that normalises images to segment; all else the host has done.

    It takes {"image": uint8 (b, h, w, c), "label": int32 (b, h, w), "mask": float (b,)} and returns the same with
    float32 images, which are 0 where the label is PADDING: it is the normalised image that is padded.
    """

    def apply(batch: dict, key: jax.Array, mixing: Any) -> dict:
        images = photometric.normalise(batch["image"], config.data.mean, config.data.std)
        outside = batch["label"][..., None] == PADDING
        return {"image": jnp.where(outside, 0, images), "label": batch["label"], "mask": batch["mask"]}

    return apply
