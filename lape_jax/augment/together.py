"""The operations of `lape_jax.augment.operations` on a whole batch at once, for a GPU: the same pixels, few passes.

Where every image has an operation of its own, computing each for all images and choosing writes and reads what every
one of them gives. Here a step reads the batch

1. for statistics: the sums, extremes and histograms that some operations need;
2. for changes of values: what an operation makes of a value is a table of 256 entries for each image and channel,
   except where other channels (color) or neighbours (sharpness) matter, which are blends with another image: see the
   rows of `operations.OPERATIONS`;
3. for changes of place: the 16 pixels around where each pixel comes from, of the images that have drawn one.

What is read at computed places is one long row: XLA keeps lists of coordinates in memory, and not single numbers.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from lape_jax.augment import histogram, operations, photometric, warp
from lape_jax.augment.operations import OPERATIONS, POINTWISE, Drawn, Statistics
from lape_jax.errors import UserError

PARTS = 4  # that changes of place are done in
COUNTED = [index for index, row in enumerate(OPERATIONS) if row.counts]
BLENDED = {index: row.blend for index, row in enumerate(OPERATIONS) if row.blend}


def apply(images: UInt8[Array, "b h w c"], drawn: Drawn, fill: tuple[int, ...]) -> UInt8[Array, "b h w c"]:
    """What `operations.apply` makes of each image by its own row of `drawn`, bit for bit.

    Raises:
        UserError: there are 2^31 values or more, too many for their places to be 32-bit numbers.
    """
    if images.size >= 2**31:
        count, height, width, _ = images.shape
        raise UserError(
            f"{count:,} images of {height} x {width} pixels are too many for one device to augment at once: use a "
            "smaller batch_size, or more devices"
        )
    for layer in range(drawn.operation.shape[1]):
        images = _step(images, *(column[:, layer] for column in drawn), fill)
    return images


def _step(images, operation, argument, method, fill):
    """One operation for each image: on values for all of them, and then those on places for those that have drawn one.

    The latter are the dearest by far, and with the usual policies a sixth of the batch: it is done in parts of a
    quarter, as many as there are images for.
    """
    count, height, width, _ = images.shape
    wanted = operation >= len(POINTWISE)
    part = -(-count // PARTS)
    order = jnp.pad(jnp.argsort(~wanted), (0, PARTS * part - count))  # those that want it first
    maps = jax.vmap(lambda *one: operations.affine(*one, height, width))(operation, argument)

    def move(state):
        done, changed = state
        rows = jax.lax.dynamic_slice(order, (done,), (part,))
        maps_of_rows, methods = jax.tree.map(lambda field: field[rows], (maps, method))
        moved = warp.sample_rows(images, rows, maps_of_rows, fill, methods)
        turn = jnp.arange(part)
        places = jnp.where(done + turn < wanted.sum(), rows, count + turn)  # of which those from `count` on are dropped
        return done + part, changed.at[places].set(moved, mode="drop", unique_indices=True)

    state = jnp.zeros((), jnp.int32), _change_values(images, operation, argument)
    return jax.lax.while_loop(lambda state: state[0] < wanted.sum(), move, state)[1]


def _change_values(images, operation, argument):
    """The images after an operation on values; any for those that have drawn another."""
    low, high = images.min((1, 2)).astype(jnp.int32), images.max((1, 2)).astype(jnp.int32)
    counts = histogram.histograms(images, functools.reduce(operator.or_, (operation == index for index in COUNTED)))
    found = Statistics(low, high, counts, jax.vmap(photometric.mean_luma)(images))
    tables = jax.vmap(_table)(operation, argument, found)
    *others, (_, last) = BLENDED.items()
    other = jax.vmap(last)(images)
    for index, blend in others:
        other = jnp.where(_each(operation == index), jax.vmap(blend)(images), other)
    blended = jax.vmap(photometric.blend)(other, images, argument)
    by_table = functools.reduce(operator.and_, (operation != index for index in BLENDED))
    return jnp.where(_each(by_table), histogram.lookup_batch(tables, images), blended)


def _table(operation, argument, found):
    """What the operation makes of each value of each channel, (c, 256); any for those that are not by value."""
    values, tables = jnp.arange(256, dtype=jnp.uint8)[:, None, None], {}
    for index, row in enumerate(OPERATIONS):
        if row.by_value or row.table:
            table = row.table(values, argument, found) if row.table else row.change(values, argument)
            table = table[:, 0, 0] if table.ndim == 3 else table
            tables[index] = jnp.broadcast_to(table, (len(found.low), 256))
    places = jnp.asarray([list(tables).index(index) if index in tables else 0 for index in range(len(OPERATIONS))])
    return jax.lax.select_n(places[operation], *tables.values())


def _each(condition):
    """For each image, against its pixels."""
    return condition[:, None, None, None]
