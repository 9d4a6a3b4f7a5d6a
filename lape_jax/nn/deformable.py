"""Multi-scale deformable attention: each query looks at a few points of several maps, between whose pixels it reads.

Source: Zhu et al. 2021, "Deformable DETR" (arXiv:2010.04159), section 4.1; fundamentalvision/Deformable-DETR,
`models/ops/modules/ms_deform_attn.py`.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float64

from lape_jax.nn.by_blocks import by_blocks

Shape = tuple[int, int]  # rows and columns of a map
Maps = Float[Array, "b heads rows columns c"]
Points = Float[Array, "b heads points n"]  # the n queries last: a TPU fills up what is shorter than 128 there
Found = Float[Array, "b heads n c"]
FETCHED, MULTIPLIED = 512, 256  # queries at a time of `by_gathers` and `by_products`


def centres(shape: Shape) -> Float64[np.ndarray, "n 2"]:
    """(x, y) of the pixels of a map, row by row: ((column + 1/2) / columns, (row + 1/2) / rows)."""
    row, column = (axis.reshape(-1) for axis in np.indices(shape))
    return np.stack([(column + 0.5) / shape[1], (row + 0.5) / shape[0]], axis=-1)


# ---- Reading between pixels ------------------------------------------------------------------------------------------


@jax.custom_vjp
def sample(maps: Maps, x: Points, y: Points, weights: Points) -> Found:
    """sum_p weights_p maps(y_p, x_p), bilinear, where the centre of the first pixel is (0, 0) and all is 0 outside.

    Where a coordinate is that of a centre, the derivative by it is that to the right. Done in the way that suits the
    device that it is compiled for: see `benchmarks/deformable.md`. The gradient keeps nothing but the arguments.
    """
    return jax.lax.platform_dependent(maps, x, y, weights, tpu=by_products, default=by_gathers)


def _gradient(form: Callable[..., Found]) -> Callable[..., tuple[jax.Array, ...]]:
    return lambda given, g: jax.vjp(form, *given)[1](g)


sample.defvjp(
    lambda *given: (sample(*given), given),
    lambda given, g: jax.lax.platform_dependent(given, g, tpu=_gradient(by_products), default=_gradient(by_gathers)),
)


def by_gathers(maps: Maps, x: Points, y: Points, weights: Points) -> Found:
    """`sample` from the four pixels around each point, which are fetched; in the gradient they are added to."""
    *outer, rows, columns, channels = maps.shape
    full = jnp.promote_types(maps.dtype, jnp.float32)  # in which gradients add up
    fetch = jax.vmap(jax.vmap(lambda pixels, at: pixels.at[at].get(mode="promise_in_bounds")))

    def some(_, x, y, weights, pixels):
        places, shares = [], []
        for row, share_y in _neighbours(y, rows):
            for column, share_x in _neighbours(x, columns):
                places.append(row * columns + column)
                shares.append(weights * share_y * share_x)
        found = fetch(pixels, jnp.concatenate(places, axis=2))
        return jnp.einsum("bhpn,bhpnc->bhnc", jnp.concatenate(shares, axis=2), found)

    pixels = maps.reshape(*outer, rows * columns, channels).astype(full)
    return by_blocks(some, [x, y, weights], [pixels], axis=3, into=2, block=FETCHED)


def _neighbours(at: Points, size: int) -> list[tuple[jax.Array, jax.Array]]:
    """The pixels before and behind each coordinate, and how much each counts: nothing if it is outside."""
    low = jnp.floor(at)
    share, found = at - low, []
    for pixel, part in ((low, 1 - share), (low + 1, share)):
        inside = (pixel >= 0) & (pixel < size)
        found.append((jnp.clip(pixel, 0, size - 1).astype(jnp.int32), jnp.where(inside, part, 0)))
    return found


def by_products(maps: Maps, x: Points, y: Points, weights: Points) -> Found:
    """`sample` as a product of the map with a matrix (queries, pixels), some queries at a time.

    sum_p weights_p maps(y_p, x_p) = sum_ij A_ij map_ij with A_ij = sum_p (weights_p Y_pi) X_pj, in which Y_pi is the
    share of row i in point p, and X_pj that of column j. The matrix is rounded to the type of the maps.
    """
    full = jnp.promote_types(maps.dtype, jnp.float32)
    rows, columns = maps.shape[2:4]

    def some(_, x, y, weights, maps_full):
        down, right = _shares(y, rows) * weights[..., None, :], _shares(x, columns)
        points = range(weights.shape[2])
        # Written out, as a product with a batch axis last would be: XLA fuses it into the one that follows.
        matrix = sum(down[:, :, p, :, None] * right[:, :, p, None] for p in points).astype(maps.dtype)
        values = maps_full.astype(maps.dtype)
        return jnp.einsum("bhijn,bhijc->bhnc", matrix, values, preferred_element_type=full)

    return by_blocks(some, [x, y, weights], [maps.astype(full)], axis=3, into=2, block=MULTIPLIED)


def _shares(at: Points, size: int) -> Float[Array, "b heads points size n"]:
    """How much each of `size` pixels counts in each coordinate; two at most do."""
    low = jnp.floor(at)[..., None, :]
    share = at[..., None, :] - low
    distance = jnp.arange(size, dtype=at.dtype)[:, None] - low
    return jnp.where(distance == 0, 1 - share, jnp.where(distance == 1, share, 0))


# ---- Attention -------------------------------------------------------------------------------------------------------


class DeformableAttention(nn.Module):
    """output_proj(sum over maps l and points p of weight_lp V_l(reference + offset_lp)), head by head.

    V = value_proj(values). Offsets, in pixels of the map, and weights, a softmax over all points of all maps together,
    are linear in the query and float32 or better. Initial values: no query matters; head m of M looks in the direction
    2 pi m / M, at points whose larger offset is 1, 2, ... pixels, all weighed equally; both projections are Xavier's.

    Attributes:
        heads: M; must divide the width.
        points: how many points each head looks at in each map.
        dtype: type to compute in.
    """

    heads: int = 6
    points: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b n d"],
        references: Float64[np.ndarray, "n 2"],
        values: Float[Array, "b m d"],
        shapes: Sequence[Shape],
    ) -> Float[Array, "b n d"]:
        """What each query reads.

        Args:
            queries: normalised.
            references: (x, y) of where each query is, in units of the maps' width and height; see `centres`.
            values: the pixels of all maps, one map after the other, normalised.
            shapes: rows and columns of each map.
        """
        batch, count, width = queries.shape
        full = jnp.promote_types(self.dtype, jnp.float32)
        split = (self.heads, len(shapes), self.points)
        project = {"dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        values = nn.Dense(width, name="value_proj", **project)(values)
        steer = {"dtype": full, "kernel_init": nn.initializers.zeros}
        first = _directions(*split)
        offsets = nn.Dense(first.size, name="sampling_offsets", bias_init=lambda *_: jnp.asarray(first), **steer)
        offsets = offsets(queries).reshape(batch, count, *split, 2)
        offsets = offsets.transpose(5, 3, 0, 2, 4, 1)  # (x, y), map, image, head, point, query
        weights = nn.Dense(math.prod(split), name="attention_weights", **steer)(queries)
        weights = jax.nn.softmax(weights.reshape(batch, count, self.heads, -1), axis=-1)
        weights = weights.reshape(batch, count, *split).transpose(3, 0, 2, 4, 1)
        found, start = 0, 0
        for level, (rows, columns) in enumerate(shapes):
            pixels = values[:, start : start + rows * columns].reshape(batch, rows, columns, self.heads, -1)
            x, y = (
                jnp.asarray(reference * size - 0.5, full) + offset[level]
                for reference, size, offset in zip(references.T, (columns, rows), offsets, strict=True)
            )
            found = found + sample(pixels.transpose(0, 3, 1, 2, 4), x, y, weights[level])
            start += rows * columns
        found = found.swapaxes(1, 2).reshape(batch, count, width)
        return nn.Dense(width, name="output_proj", **project)(found)


def _directions(heads: int, maps: int, points: int) -> np.ndarray:
    """The first offsets, (x, y) of all heads, maps and points one after the other."""
    angle = 2 * math.pi * np.arange(heads) / heads
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    unit = unit / np.abs(unit).max(axis=-1, keepdims=True)
    offsets = unit[:, None, None] * np.arange(1, points + 1)[:, None]
    return np.broadcast_to(offsets, (heads, maps, points, 2)).reshape(-1).astype(np.float32)
