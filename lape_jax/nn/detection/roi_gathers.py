"""RoIAlign pixel by pixel: what each bin sees is fetched, from all maps at once, as many pixels as it takes.

For processors whose memory is fast beside their arithmetic; see `benchmarks/detection_ops.md`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lape_jax.nn.detection.roi_shares import level, shares

FETCHED = 64  # regions of an image at a time


class Axis(NamedTuple):
    """What the bins of some regions see along one axis: `count` pixels from `first` on, and how much each counts."""

    first: Int[Array, "..."]
    count: Int[Array, "..."]
    shares: Float[Array, "... n"]

    def pixel(self, index: Int[Array, ""]) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
        """The pixel after `index` others, and how much it counts; nothing if the bin does not see so many."""
        at = jnp.minimum(self.first + index, self.shares.shape[-1] - 1)
        share = jnp.take_along_axis(self.shares, at[..., None], axis=-1)[..., 0]
        return at, jnp.where(index < self.count, share, 0)


class Reads(NamedTuple):
    """What is read of maps whose pixels stand one after the other: `start` is where a region's map begins."""

    down: Axis
    across: Axis
    start: Int[Array, "..."]
    width: Int[Array, "..."]


def features(
    maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"], strides: Sequence[int], out: int
) -> Float[Array, "b r {out} {out} c"]:
    """See `lape_jax.nn.detection.roi_align.pooled`."""
    full = jnp.promote_types(maps[0].dtype, jnp.float32)
    pixels = _pixels(maps)
    fetch = jax.vmap(lambda pixels, at: pixels.at[at].get(mode="clip"))

    def of_some(reads):
        def add(total, place, share):
            return total + share[..., None] * fetch(pixels, place).astype(full)

        return _visit(reads, add, jnp.zeros((*reads.down.first.shape, out, pixels.shape[-1]), full))

    found = jax.lax.map(of_some, jax.tree.map(_cut, _reads(maps, rois, strides, out)))  # blocks, b, FETCHED, ...
    found = jnp.moveaxis(found, 0, 1).reshape(found.shape[1], -1, *found.shape[3:])
    return found[:, : rois.shape[1]].astype(maps[0].dtype)


def gradient(
    maps: Sequence[Float[Array, "b _h _w c"]],
    rois: Float[Array, "b r 4"],
    g: Float[Array, "b r out out c"],
    strides: Sequence[int],
) -> list[Float[Array, "b _h _w c"]]:
    """That of the maps, where `g` is that of `features`."""
    full = jnp.promote_types(maps[0].dtype, jnp.float32)
    pixels = _pixels(maps)
    put = jax.vmap(lambda total, at, value: total.at[at].add(value, mode="clip"))

    def of_some(total, given):
        reads, g = given
        return _visit(reads, lambda total, place, share: put(total, place, share[..., None] * g), total), None

    parts = jax.tree.map(_cut, (_reads(maps, rois, strides, g.shape[2]), g.astype(full)))
    total, _ = jax.lax.scan(of_some, jnp.zeros(pixels.shape, full), parts)
    found, start = [], 0
    for map_ in maps:
        count = map_.shape[1] * map_.shape[2]
        found.append(total[:, start : start + count].reshape(map_.shape).astype(map_.dtype))
        start += count
    return found


def _pixels(maps: Sequence[Float[Array, "b _h _w c"]]) -> Float[Array, "b n c"]:
    return jnp.concatenate([map_.reshape(map_.shape[0], -1, map_.shape[-1]) for map_ in maps], axis=1)


def _visit(reads: Reads, step: Callable[..., Any], state: Any) -> Any:
    """`step`s of state, a pixel's place for each bin, and its share: as many as there are in the bin that sees most."""

    def of_row(i, state):
        y, share_y = reads.down.pixel(i)

        def of_pixel(j, state):
            x, share_x = reads.across.pixel(j)
            place = reads.start[..., None, None] + y[..., :, None] * reads.width[..., None, None] + x[..., None, :]
            return step(state, place, share_y[..., :, None] * share_x[..., None, :])

        return jax.lax.fori_loop(0, jnp.max(reads.across.count), of_pixel, state)

    return jax.lax.fori_loop(0, jnp.max(reads.down.count), of_row, state)


def _reads(
    maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"], strides: Sequence[int], out: int
) -> Reads:
    chosen = level(rois, len(maps))
    rows, columns = (jnp.asarray([map_.shape[axis] for map_ in maps], jnp.int32)[chosen] for axis in (1, 2))
    starts = [0]
    for map_ in maps[:-1]:
        starts.append(starts[-1] + map_.shape[1] * map_.shape[2])
    box = rois * (1 / jnp.asarray(strides, rois.dtype))[chosen][..., None] - 0.5
    down, across = (
        _axis(shares(box[..., i], box[..., i + 2], out, size, max(map_.shape[2 - i] for map_ in maps)))
        for i, size in ((1, rows), (0, columns))
    )
    return Reads(down, across, jnp.asarray(starts, jnp.int32)[chosen], columns)


def _axis(found: Float[Array, "... n"]) -> Axis:
    seen = found > 0
    first = jnp.argmax(seen, axis=-1).astype(jnp.int32)
    last = found.shape[-1] - 1 - jnp.argmax(seen[..., ::-1], axis=-1).astype(jnp.int32)
    return Axis(first, jnp.where(jnp.any(seen, axis=-1), last - first + 1, 0), found)


def _cut(array: jax.Array) -> jax.Array:
    """(b, r, ...) -> (blocks, b, FETCHED, ...), the last filled up with regions that see nothing."""
    batch, count, *shape = array.shape
    blocks = -(-count // FETCHED)
    array = jnp.pad(array, ((0, 0), (0, blocks * FETCHED - count), *((0, 0),) * len(shape)))
    return jnp.moveaxis(array.reshape(batch, blocks, FETCHED, *shape), 1, 0)
