"""Operations that look at the distribution of the values of each channel: bit for bit what Pillow computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8


def histogram(image: UInt8[Array, "h w c"]) -> Int32[Array, "c 256"]:
    """How often each value occurs, by channel; up to 16 million pixels."""
    return jax.lax.platform_dependent(image, tpu=_histogram_by_product, default=_histogram_by_scatter)


def _histogram_by_scatter(image):
    channels = image.shape[-1]
    bins = image.astype(jnp.int32) + 256 * jnp.arange(channels)
    counts = jnp.zeros(256 * channels, jnp.int32)
    return counts.at[bins.reshape(-1)].add(1, mode="promise_in_bounds").reshape(channels, 256)


def _histogram_by_product(image):
    """For a TPU, which scatters one number at a time: how often each high half and low half of a byte come together."""
    high, low = _halves(image)
    counts = jnp.einsum("cin,cjn->cij", high, low, preferred_element_type=jnp.float32)
    return counts.reshape(-1, 256).astype(jnp.int32)


def histograms(images: UInt8[Array, "b h w c"], wanted: Bool[Array, " b"]) -> Int32[Array, "b c 256"]:
    """Those of the images that are wanted, and zeros for the others, which are not counted; for a GPU."""
    rows = 256 * jnp.arange(images.shape[0] * images.shape[-1]).reshape(-1, 1, 1, images.shape[-1])
    bins = jnp.where(wanted[:, None, None, None], images + rows, rows.size * 256)
    counts = jnp.zeros(rows.size * 256, jnp.int32).at[bins.reshape(-1)].add(1, mode="drop")
    return counts.reshape(*images.shape[::3], 256)


def lookup(table: UInt8[Array, "c 256"], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """table[k, x] for each value x of channel k."""
    return jax.lax.platform_dependent(table, image, tpu=_lookup_by_product, default=_lookup_by_gather)


def _lookup_by_gather(table, image):
    return table.at[jnp.arange(table.shape[0]), image.astype(jnp.int32)].get(mode="promise_in_bounds")


def _lookup_by_product(table, image):
    """For a TPU: a matrix product gives the 16 entries with the right high half, a comparison the one with the low."""
    channels = image.shape[-1]
    high, low = _halves(image)
    entries = table.reshape(channels, 16, 16).astype(jnp.bfloat16)  # which holds 0..255 exactly
    entries = jnp.einsum("cij,cin->cjn", entries, high, preferred_element_type=jnp.float32)
    found = jnp.where(low > 0, entries, 0).sum(1).astype(jnp.uint8)
    return found.T.reshape(image.shape)


def lookup_batch(tables: UInt8[Array, "b c 256"], images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """`lookup` of each image in its own table, all of them as one row; for a GPU."""
    rows = 256 * jnp.arange(tables.shape[0] * tables.shape[1]).reshape(-1, 1, 1, tables.shape[1])
    return tables.reshape(-1).at[images + rows].get(mode="promise_in_bounds")


def _halves(image):
    """Ones (in bfloat16) where the high and the low 4 bits of channel c, pixel n are i: both (c, i, n)."""
    values = image.reshape(-1, image.shape[-1]).T.astype(jnp.int32)[:, None]
    sixteen = jnp.arange(16)[:, None]
    return (values >> 4 == sixteen).astype(jnp.bfloat16), (values & 15 == sixteen).astype(jnp.bfloat16)


def equalize(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Spreads the values of each channel so that they occur about equally often (ImageOps.equalize)."""
    return lookup(jax.vmap(equalizing)(histogram(image)), image)


def equalizing(counts: Int32[Array, "256"]) -> UInt8[Array, "256"]:
    """table[v] = (step/2 + pixels below v) / step, in whole numbers; step = (pixels below the greatest value) / 255."""
    values = jnp.arange(256)
    top = jnp.max(jnp.where(counts > 0, values, 0))
    step = (counts.sum() - counts[top]) // 255
    below = jnp.cumsum(counts) - counts
    table = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), values).astype(jnp.uint8)


def autocontrast(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Stretches the values of each channel linearly to 0..255 (ImageOps.autocontrast); constant channels stay."""
    low, high = (extreme(image, axis=(0, 1)).astype(jnp.int32) for extreme in (jnp.min, jnp.max))
    return lookup(jax.vmap(stretching)(low, high), image)


def stretching(low: Int32[Array, ""], high: Int32[Array, ""]) -> UInt8[Array, "256"]:
    """table[v] = floor(255 (v - low) / (high - low)), less 1 where Pillow's doubles fall short of a whole number."""
    values = jnp.arange(256)
    starts, short = (jnp.asarray(array) for array in _shortfalls())
    start, stop = starts[256 * low + high], starts[256 * low + high + 1]
    candidates = start + jnp.arange(MOST_SHORTFALLS)
    falls_short = ((short[candidates, None] == values) & (candidates < stop)[:, None]).any(0)
    table = jnp.clip(255 * (values - low) // jnp.maximum(high - low, 1) - falls_short, 0, 255)
    return jnp.where(high > low, table, values).astype(jnp.uint8)


MOST_SHORTFALLS = 17  # of one pair (low, high)


@functools.cache
def _shortfalls() -> tuple[np.ndarray, np.ndarray]:
    """For which values autocontrast's quotient is a whole number that Pillow's two roundings in float64 fall short of.

    Returns (starts, values): those of the pair (low, high) are values[starts[i]:starts[i + 1]], i = 256 low + high.
    The device computes without float64, so what that would have given is tabled here.
    """
    span, rise = np.meshgrid(np.arange(1, 256), np.arange(256), indexing="ij")
    whole = (rise <= span) & (255 * rise % span == 0)
    span, rise = span[whole], rise[whole]
    low = np.arange(256)[:, None]
    scale = 255.0 / span
    found = (low + rise) * scale + -low * scale
    at, pair = np.nonzero((found < 255 * rise // span) & (low + span < 256))
    index, value = 256 * at + at + span[pair], at + rise[pair]
    order = np.lexsort((value, index))
    starts = np.searchsorted(index[order], np.arange(65537)).astype(np.int32)
    return starts, np.concatenate([value[order], np.zeros(MOST_SHORTFALLS, int)]).astype(np.int32)
