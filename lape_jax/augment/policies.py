"""Policies by name: functions of a batch of images and one key per image."""

from collections.abc import Callable

import jax
from jaxtyping import Array, UInt8

from lape_jax.augment import autoaugment, operations, randaugment, three_augment, together
from lape_jax.augment.warp import BICUBIC, BILINEAR
from lape_jax.errors import UserError, nearest
from lape_jax.interpolation import filters_of

METHODS = {"bilinear": BILINEAR, "bicubic": BICUBIC}  # of a warp, by the name of the filter
Policy = Callable[[UInt8[Array, "b h w c"], jax.Array], UInt8[Array, "b h w c"]]


def make(name: str, *, fill: tuple[int, ...], interpolation: str) -> Policy:
    """The function (images, keys) -> images of a policy; image i is changed at random by keys[i] alone.

    Args:
        name: "none"; "cifar10_autoaugment"; "three_augment" (without its colour jitter); or RandAugment's settings in
            timm's form, like "rand-m9-mstd0.5-inc1".
        fill: RandAugment's colour for pixels that come from outside of the image, one value 0..255 per channel.
        interpolation: how RandAugment's geometric operations interpolate: "bilinear", "bicubic", or "random" (either,
            each time).

    Raises:
        UserError: for an unknown name or interpolation.
    """
    methods = tuple(METHODS[name] for name in filters_of(interpolation))
    if name == "none":
        return lambda images, keys: images
    if name == "cifar10_autoaugment":
        return _of_operations(autoaugment.draw, (autoaugment.FILL,) * len(fill))
    if name == "three_augment":
        return _drawn(three_augment.draw, three_augment.apply)
    if name.split("-")[0] != "rand":
        names = ("none", "cifar10_autoaugment", "three_augment", "rand-m9-mstd0.5-inc1 (or other numbers)")
        raise UserError(f"augmentation policy {nearest(name, names)}")
    settings = randaugment.parse(name)
    return _of_operations(lambda key: randaugment.draw(key, settings, methods), fill)


def make_color_jitter(strength: float) -> Policy:
    """Brightness, contrast and saturation in random order, each by a factor uniform in 1 - strength .. 1 + strength."""
    return _drawn(lambda key: three_augment.draw_jitter(key, strength), three_augment.jitter)


def _of_operations(draw: Callable, fill: tuple[int, ...]) -> Policy:
    def one(image, drawn):
        return operations.apply(image, drawn, fill)

    return _drawn(draw, one, lambda images, drawn: together.apply(images, drawn, fill))


def _drawn(draw: Callable, apply: Callable, apply_to_all: Callable | None = None) -> Policy:
    """The policy that applies to each image what is drawn with its key.

    A GPU does the batch at once (by `apply_to_all`, if given; or every branch of a switch is computed); a CPU and a TPU
    core, which have one stream of instructions, take image after image and only the branch that was drawn.
    """
    at_once = apply_to_all or jax.vmap(apply)

    def one_by_one(*batch):
        return jax.lax.map(lambda example: apply(*example), batch)

    def policy(images, keys):
        batch = images, jax.vmap(draw)(keys)
        return jax.lax.platform_dependent(*batch, cpu=one_by_one, tpu=one_by_one, default=at_once)

    return policy
