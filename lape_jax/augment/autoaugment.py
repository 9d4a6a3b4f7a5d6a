"""The AutoAugment policy for CIFAR-10 (Cubuk et al. 2019, arXiv:1805.09501, Table 7), as Compact Transformers apply it.

Unlike the paper, rotations are counter-clockwise only, magnitudes are the ends of 9 equal steps, shears resample with
bicubic and translations and rotations with nearest neighbours (`SHI-Labs/Compact-Transformers:examples/utils`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax.augment.operations import IDENTITY, NAMES, Drawn
from lape_jax.augment.warp import BICUBIC, NEAREST

FILL = 128

SUB_POLICIES = (  # two operations, each with its probability and magnitude 0..9
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)


def arguments(name: str, magnitude: int) -> tuple[float, float]:
    """The arguments that an operation has at a magnitude 0..9 with negative and with positive sign, equally likely."""
    part = magnitude / 9
    if name in ("color", "contrast", "brightness", "sharpness"):
        return 1 - 0.9 * part, 1 + 0.9 * part
    if name in ("shear_x", "shear_y"):
        return -0.3 * part, 0.3 * part
    if name in ("translate_x", "translate_y"):
        return -150 / 331 * part, 150 / 331 * part
    alike = {"rotate": 30 * part, "posterize": float(np.round(8 - 4 * part)), "solarize": 256 - 256 * part}
    return (alike.get(name, 0.0),) * 2


def draw(key: jax.Array) -> Drawn:
    """Draws one of the sub-policies, and for both of its operations whether it is applied and its sign."""
    operations = np.asarray([[NAMES.index(name) for name, _, _ in pair] for pair in SUB_POLICIES])
    probabilities = np.asarray([[probability for _, probability, _ in pair] for pair in SUB_POLICIES], np.float32)
    signed = np.asarray([[arguments(name, size) for name, _, size in pair] for pair in SUB_POLICIES], np.float32)
    nearest = ("rotate", "translate_x", "translate_y")
    methods = np.asarray([[NEAREST if name in nearest else BICUBIC for name, _, _ in pair] for pair in SUB_POLICIES])

    u = jax.random.uniform(key, (5,))
    chosen = (u[0] * len(SUB_POLICIES)).astype(jnp.int32)
    applied = u[1:3] < jnp.asarray(probabilities)[chosen]
    argument = jnp.where(u[3:5] < 0.5, *jnp.asarray(signed)[chosen].T)
    return Drawn(jnp.where(applied, jnp.asarray(operations)[chosen], IDENTITY), argument, jnp.asarray(methods)[chosen])
