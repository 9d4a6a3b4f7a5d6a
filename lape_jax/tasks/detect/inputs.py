"""What happens to photos on the device, and what a config says of it in a line."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, UInt8
from ml_collections import ConfigDict

from lape_jax.augment import photometric


def normalised(
    images: UInt8[Array, "b h w 3"], sizes: Integer[Array, "b 2"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w 3"]:
    """The images as the model sees them, with zeros beyond their sizes: it is the normalised image that is padded."""
    rows, columns = (jnp.arange(side) for side in images.shape[1:3])
    inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    return jnp.where(inside[..., None], photometric.normalise(images, mean, std), 0)


def normalising(config: ConfigDict) -> Callable[[dict, jax.Array, Any], dict]:
    """The function (batch, key, mixing) -> batch that makes float32 images of a batch's; all else the host has done."""

    def apply(batch: dict, key: jax.Array, mixing: Any) -> dict:
        images = normalised(batch["image"], batch["size"], config.data.mean, config.data.std)
        return {**batch, "image": images}

    return apply


def describe(config: ConfigDict) -> str:
    """What training images go through, in a line."""
    detect = config.detect
    parts = ["flip"] if config.augment.flip else []
    if detect.crop_short:
        parts += [
            f"half of them resized to {_span(detect.crop_short)} and cropped to {detect.crop[0]} to {detect.crop[1]}"
        ]
    height, width = detect.canvas
    parts += [f"resize to {_span(detect.short)} (longer side at most {detect.long})", f"crop to {height} x {width}"]
    return ", ".join(parts)


def _span(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else f"{min(values)} to {max(values)}"
