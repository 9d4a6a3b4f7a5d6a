"""3-Augment of DeiT III (Touvron et al. 2022, arXiv:2204.07118; `facebookresearch/deit:augment.py`): one of three
changes, equally likely, and as a setting of its own the colour jitter that follows it (torchvision's on Pillow images).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from lape_jax.augment import filters, photometric

CHANGES = ("grayscale", "solarize", "blur")
ORDERS = np.asarray([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])


class Change(NamedTuple):
    """Which of CHANGES, and the blur's standard deviation in pixels."""

    kind: Int[Array, ""]
    sigma: Float[Array, ""]


class Jitter(NamedTuple):
    """Factors of brightness (0), contrast (1) and saturation (2), and the order in which these are applied."""

    factors: Float[Array, "3"]
    order: Int[Array, "3"]


def draw(key: jax.Array) -> Change:
    """One of the three changes; sigma uniform in 0.1..2."""
    u = jax.random.uniform(key, (2,))
    return Change((u[0] * len(CHANGES)).astype(jnp.int32), 0.1 + 1.9 * u[1])


def apply(image: UInt8[Array, "h w c"], change: Change) -> UInt8[Array, "h w c"]:
    """The image in grey, with values from 128 on inverted, or blurred."""
    branches = (
        photometric.grayscale,
        lambda image: photometric.solarize(image, 128),
        lambda image: filters.gaussian_blur(image, change.sigma),
    )
    return jax.lax.switch(change.kind, branches, image)


def draw_jitter(key: jax.Array, strength: float) -> Jitter:
    """Factors uniform in 1 - strength .. 1 + strength, and any of the six orders."""
    u = jax.random.uniform(key, (4,))
    order = jnp.asarray(ORDERS)[(u[3] * len(ORDERS)).astype(jnp.int32)]
    return Jitter(1 + strength * (2 * u[:3] - 1), order)


def jitter(image: UInt8[Array, "h w c"], drawn: Jitter) -> UInt8[Array, "h w c"]:
    """The image with brightness, contrast and saturation changed, each once, in the order drawn."""
    changes = (photometric.brightness, photometric.contrast, photometric.color)

    def step(image, kind):
        return jax.lax.switch(kind, changes, image, drawn.factors[kind]), None

    return jax.lax.scan(step, image, drawn.order)[0]
