"""Policies by name: functions of a batch of images and one key per image."""

from collections.abc import Callable

import jax
from jaxtyping import Array, UInt8

from lape_jax.augment import autoaugment, operations, randaugment, three_augment
from lape_jax.augment.warp import BICUBIC, BILINEAR
from lape_jax.errors import UserError, nearest

METHODS = {"bilinear": (BILINEAR,), "bicubic": (BICUBIC,), "random": (BILINEAR, BICUBIC)}
Policy = Callable[[UInt8[Array, "b h w c"], jax.Array], UInt8[Array, "b h w c"]]


def make(name: str, *, fill: tuple[int, ...], interpolation: str) -> Policy:
    """The function (images, keys) -> images of a policy; image i is changed at random by keys[i] alone.

    Args:
        name: "none"; "cifar10_autoaugment"; "three_augment" (without its colour jitter); or RandAugment's settings in
            timm's form, like "rand-m9-mstd0.5-inc1".
        fill: RandAugment's colour for pixels that come from outside of the image, one value 0..255 per channel.
        interpolation: of RandAugment's geometric operations: "bilinear", "bicubic", or "random" (either, each time).

    Raises:
        UserError: for an unknown name or interpolation.
    """
    if interpolation not in METHODS:
        raise UserError(f"interpolation {nearest(interpolation, METHODS)}")
    if name == "none":
        return lambda images, keys: images
    if name == "cifar10_autoaugment":
        return _drawn(autoaugment.draw, lambda i, d: operations.apply(i, d, (autoaugment.FILL,) * i.shape[-1]))
    if name == "three_augment":
        return _drawn(three_augment.draw, three_augment.apply)
    if name.split("-")[0] != "rand":
        names = ("none", "cifar10_autoaugment", "three_augment", "rand-m9-mstd0.5-inc1 (or other numbers)")
        raise UserError(f"augmentation policy {nearest(name, names)}")
    settings, methods = randaugment.parse(name), METHODS[interpolation]
    return _drawn(lambda key: randaugment.draw(key, settings, methods), lambda i, d: operations.apply(i, d, fill))


def make_color_jitter(strength: float) -> Policy:
    """Brightness, contrast and saturation in random order, each by a factor uniform in 1 - strength .. 1 + strength."""
    return _drawn(lambda key: three_augment.draw_jitter(key, strength), three_augment.jitter)


def _drawn(draw: Callable, apply: Callable) -> Policy:
    """The policy that applies to each image what is drawn with its key.

    A GPU does the batch at once, which computes every branch of a switch; a CPU and a TPU core, which have one stream
    of instructions, take image after image and only the branch that was drawn.
    """

    def one_by_one(*batch):
        return jax.lax.map(lambda example: apply(*example), batch)

    def policy(images, keys):
        batch = images, jax.vmap(draw)(keys)
        return jax.lax.platform_dependent(*batch, cpu=one_by_one, tpu=one_by_one, default=jax.vmap(apply))

    return policy
