"""Mixup and CutMix by batch: every image with its partner in the reversed batch, all by the same draw."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Num

from lape_jax.errors import UserError


class Mix(NamedTuple):
    """How the images of a batch are mixed.

    Attributes:
      lam: lambda, the share of an image's own target in the mixed one.
      weight: the share of its own value in each pixel: lambda everywhere (mixup), or 0 in a box and 1 around (CutMix).
    """

    lam: Float[Array, ""]
    weight: Float[Array, "h w"]


def draw(
    key: jax.Array, height: int, width: int, *, mixup: float, cutmix: float, prob: float, switch_prob: float
) -> Mix:
    """The draw for a batch, as timm's `Mixup` in batch mode makes it.

    With probability `prob` the batch is mixed: by CutMix (Yun et al. 2019) with probability `switch_prob`, else by
    mixup (Zhang et al. 2018); where only one of the two is on, always by that. Lambda ~ Beta(mixup, mixup) or
    Beta(cutmix, cutmix). An unmixed batch has lambda = 1.

    Args:
      mixup, cutmix: parameters of the Beta distributions; 0 = off.

    Raises:
      UserError: both are off.
    """
    if mixup <= 0 and cutmix <= 0:
        raise UserError(f"mixup is {mixup} and cutmix is {cutmix}: mixing needs one of them above 0")
    lam_key, key = jax.random.split(key)
    draws = jax.random.uniform(key, (4,))
    mix = none = unmixed(height, width)
    if mixup > 0:
        lam = symmetric_beta(lam_key, mixup)
        mix = Mix(lam, jnp.full((height, width), lam))
    if cutmix > 0:  # by the same key as mixup, since only one of the two is used
        boxed = cut(draws[:2], symmetric_beta(lam_key, cutmix), height, width)
        mix = choose(draws[2] < switch_prob, boxed, mix) if mixup > 0 else boxed
    return choose(draws[3] < prob, mix, none)


def unmixed(height: int, width: int) -> Mix:
    """Every image by itself."""
    return Mix(jnp.ones(()), jnp.ones((height, width)))


def choose(condition: Any, mix: Mix, other: Mix) -> Mix:
    """`mix` where the (traced) condition holds, else `other`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), mix, other)


def cut(draws: Float[Array, "2"], lam: Float[Array, ""], height: int, width: int) -> Mix:
    """CutMix with a box of sides floor(height r) and floor(width r), r = sqrt(1 - lam).

    The box is centred uniformly over the image (by `draws`, uniform in [0, 1)) and clipped to it, and lambda recomputed
    from what is left. The sides are those of timm 1.0; in timm 0.3, boxes of odd sides come out one pixel smaller.
    """

    def inside(draw, side):
        centre = (draw * side).astype(jnp.int32)
        long = (side * jnp.sqrt(1 - lam)).astype(jnp.int32)
        low, high = jnp.clip(centre - long // 2, 0, side), jnp.clip(centre + (long + 1) // 2, 0, side)
        return (jnp.arange(side) >= low) & (jnp.arange(side) < high)

    rows, columns = inside(draws[0], height), inside(draws[1], width)
    area = jnp.sum(rows) * jnp.sum(columns)
    return Mix(1 - area / (height * width), 1 - (rows[:, None] & columns).astype(jnp.float32))


def symmetric_beta(key: jax.Array, a: float) -> Float[Array, ""]:
    """A draw from Beta(a, a), rounded to a multiple of 2^-16: so its products with 8-bit pixels are exact in float32.

    For a >= 1/2 it is (1 + x) / 2, x = sqrt(1 - u^(2 / (2a - 1))) cos(2 pi v) with uniform u and v: a coordinate of a
    uniform point of the sphere in 2a + 1 dimensions (Ulrich, "Computer generation of distributions on the m-sphere",
    1984). JAX's own sampler, two rejection loops, takes ten times as long to compile.
    """
    if a < 0.5:
        lam = jax.random.beta(key, a, a)
    else:
        u, v = jax.random.uniform(key, (2,))
        exponent = 2 / (2 * a - 1) if a > 0.5 else math.inf
        lam = (1 + jnp.sqrt(1 - u**exponent) * jnp.cos(2 * jnp.pi * v)) / 2
    return jnp.round(lam * 2**16) / 2**16


def mix_images(
    images: Num[Array, "b h w c"], partners: Num[Array, "b h w c"], partner_mask: Float[Array, " b"], mix: Mix
) -> Num[Array, "b h w c"]:
    """weight * image + (1 - weight) * partner, in float32; for 8-bit images rounded to 8 bits, half to even.

    An image whose partner could not be read (mask 0) stays as it is.
    """
    weight = jnp.where(partner_mask[:, None, None, None] > 0, mix.weight[:, :, None], 1.0)
    mixed = _product(images.astype(jnp.float32), weight) + _product(partners.astype(jnp.float32), 1 - weight)
    return jnp.rint(mixed).astype(jnp.uint8) if images.dtype == jnp.uint8 else mixed


def _product(pixels: Float32[Array, "b h w c"], share: Float32[Array, "b h w 1"]) -> Float32[Array, "b h w c"]:
    """pixels * share (not negative), rounded before anything is added to it.

    A compiler may contract a product and a sum to a fused multiply-add, and does so or not depending on what else the
    loop computes: the last bit would vary with the mesh. Putting the sign on in integers keeps the two apart.
    """
    sign = jax.lax.bitcast_convert_type(pixels, jnp.int32) & jnp.int32(-(2**31))
    magnitude = jax.lax.bitcast_convert_type(jnp.abs(pixels) * share, jnp.int32)
    return jax.lax.bitcast_convert_type(magnitude | sign, jnp.float32)


def mix_targets(
    labels: Int[Array, " b"], partners: Int[Array, " b"], partner_mask: Float[Array, " b"], mix: Mix, num_classes: int
) -> Float[Array, "b {num_classes}"]:
    """lambda onehot(label) + (1 - lambda) onehot(partner's label); the label's alone where the partner's mask is 0."""
    lam = jnp.where(partner_mask > 0, mix.lam, 1.0)[:, None]
    return jax.nn.one_hot(labels, num_classes) * lam + jax.nn.one_hot(partners, num_classes) * (1 - lam)


def smooth(targets: Float[Array, "b k"], smoothing: float) -> Float[Array, "b k"]:
    """(1 - s) t + s / K: label smoothing (Szegedy et al. 2016)."""
    return (1 - smoothing) * targets + smoothing / targets.shape[1]


def reverse(rows: Any, axes: tuple[str, ...], shards: int) -> Any:
    """Inside `jax.shard_map`: the rows of all shards in reverse order, for every array of a tree.

    Each shard reverses its own rows and trades them with the shard that mirrors it.

    Args:
      rows: arrays whose first axis is split over the mesh axes `axes`.
      shards: into how many parts.
    """
    own = jax.tree.map(lambda array: array[::-1], rows)
    if shards == 1:  # XLA would copy the images
        return own
    swap = [(i, shards - 1 - i) for i in range(shards)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, axes, swap), own)
