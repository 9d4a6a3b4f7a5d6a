"""RandAugment as timm parses and draws it (timm/data/auto_augment.py), from names like "rand-m9-mstd0.5-inc1"."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from lape_jax.augment import operations
from lape_jax.augment.operations import IDENTITY, NAMES, Drawn
from lape_jax.errors import UserError

# What the published policy draws from, in timm's order. Another operation would change every recipe that uses it.
OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
INDICES = tuple(map(NAMES.index, OPERATIONS))


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """How RandAugment draws.

    Attributes:
        magnitude: mean level ("m").
        std: standard deviation of the level ("mstd"); infinity: uniform between 0 and the magnitude.
        increasing: whether a higher level is a stronger change for every operation ("inc").
        layers: operations drawn per image, with replacement ("n").
        probability: that a drawn operation is applied ("p").
        maximum: the level is clipped to 0..maximum ("mmax").
    """

    magnitude: int = 10
    std: float = 0.0
    increasing: bool = False
    layers: int = 2
    probability: float = 0.5
    maximum: int = 10


SECTIONS = {"m": "magnitude", "mstd": "std", "inc": "increasing", "n": "layers", "p": "probability", "mmax": "maximum"}
WHOLE = {"m", "inc", "n", "mmax"}


def parse(name: str) -> RandAugment:
    """Reads "rand-" and sections of a key and a number: m, n, inc, mmax (whole numbers), mstd, p (decimal numbers).

    Raises:
        UserError: for a name that does not have this form, or a number that makes no sense.
    """
    head, *sections = name.split("-")
    found = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
        key, number = match.groups() if match else ("", "")
        if key not in SECTIONS or (key in WHOLE and "." in number) or SECTIONS[key] in found:
            raise UserError(
                f"augmentation policy {name!r}: {section!r} is not a section of RandAugment: each of m, n, inc, mmax "
                '(with a whole number), mstd and p (with a number) may stand once, as in "rand-m9-mstd0.5-inc1"'
            )
        found[SECTIONS[key]] = int(number) if key in WHOLE else float(number)
    found["increasing"] = found.get("increasing", 0) > 0
    if found.get("std", 0) > 100:
        found["std"] = math.inf
    settings = RandAugment(**found)
    if head != "rand" or settings.layers < 1 or settings.probability > 1 or settings.maximum < 1:
        raise UserError(f'augmentation policy {name!r} must begin with "rand" and have n >= 1, p <= 1 and mmax >= 1')
    return settings


def arguments(level: ScalarLike, sign: ScalarLike, increasing: bool) -> dict[str, ScalarLike]:
    """The argument of each of `OPERATIONS` at a level (10 is full strength) and sign (-1 or 1), by its name.

    "increasing" are timm's variants that grow stronger with the level: bits to keep and threshold count down from 4
    and 256, and the factors of colour, contrast, brightness and sharpness go away from 1 in both directions.
    """
    rows = [operations.OPERATIONS[index] for index in INDICES]
    return {row.name: row.argument(level, sign, increasing) for row in rows}


def draw(key: jax.Array, settings: RandAugment, methods: tuple[int, ...]) -> Drawn:
    """Draws the operations for one image; each geometric one uses one of `methods`, equally likely."""
    u = jax.random.uniform(key, (5, settings.layers))  # one call: every further generator takes its time to compile
    chosen = (u[0] * len(OPERATIONS)).astype(jnp.int32)
    applied = u[1] < settings.probability
    level = jnp.full(settings.layers, settings.magnitude, jnp.float32)
    if math.isinf(settings.std):
        level = level * u[2]
    elif settings.std > 0:
        level = level + settings.std * math.sqrt(2) * jax.lax.erf_inv(2 * u[2] - 1)
    level = jnp.clip(level, 0, settings.maximum)
    sign = jnp.where(u[3] < 0.5, -1.0, 1.0)
    method = jnp.asarray(methods)[(u[4] * len(methods)).astype(jnp.int32)]

    def argument(chosen, level, sign):
        found = arguments(level, sign, settings.increasing)
        return jnp.stack([jnp.float32(found[name]) for name in OPERATIONS])[chosen]

    operation = jnp.asarray(INDICES)[chosen]
    return Drawn(jnp.where(applied, operation, IDENTITY), jax.vmap(argument)(chosen, level, sign), method)
