"""A function of many queries, some at a time: what it makes on the way is never there for all of them."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Part = Callable[..., Float[Array, "..."]]


def by_blocks(
    function: Part,
    queries: Sequence[Float[Array, "..."]],
    others: Sequence[Float[Array, "..."]],
    *,
    axis: int,
    into: int,
    block: int,
) -> Float[Array, "..."]:
    """function(indices, *queries, *others), worked out for at most `block` queries at a time, forward and backward.

    If there are more, the gradient makes again what the function makes on the way, block by block, and adds the
    gradients of the `others` up in their type.

    Args:
        function: a function of the indices of some queries (s,), these queries, and `others`.
        queries: arrays whose `axis` counts queries.
        others: what all queries share.
        axis: see `queries`.
        into: the axis of the result that counts queries.
        block: how many, at most.
    """
    total = queries[0].shape[axis]
    count = -(-total // block)
    if count == 1:
        return function(jnp.arange(total), *queries, *others)
    size = -(-total // count)

    def cut(array):
        array = jnp.moveaxis(array, axis, 0)
        # The last block has fewer: what is made of the zeros in their place is cut off.
        array = jnp.pad(array, ((0, count * size - total), *((0, 0),) * (array.ndim - 1)))
        return jnp.moveaxis(array.reshape(count, size, *array.shape[1:]), 1, axis + 1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def some(first: Int[Array, ""], parts, others):
        return function(jnp.minimum(first + jnp.arange(size), total - 1), *parts, *others)

    firsts, parts = size * jnp.arange(count), [cut(array) for array in queries]
    found = jnp.moveaxis(jax.lax.map(lambda args: some(*args, others), (firsts, parts)), into + 1, 1)
    found = found.reshape(count * size, *found.shape[2:])[:total]
    return jnp.moveaxis(found, 0, into)
