"""cuDNN's flash attention, for sequences of any length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lape_jax.errors import UserError

MULTIPLE = 8  # tokens that sequences are filled up to; of odd ones JAX does not differentiate cuDNN's attention


def attend_cudnn(
    q: Float[Array, "b n heads hd"],
    k: Float[Array, "b m heads hd"],
    v: Float[Array, "b m heads hd"],
    bias: Float[Array, "w _heads n m"] | None,
    implementation: str = "cudnn",
) -> Float[Array, "b n heads hd"]:
    """softmax(q k^T / sqrt(head_dim) + bias) v, without anything of n x m in memory but the bias.

    What sequences are filled up with counts for nothing: cuDNN is told their lengths.

    Args:
        bias: `bias[i % w]` for sequence i, rounded to the type of q. cuDNN knows biases for all sequences alike, so the
            w sequences of an image are moved to the heads' axis: w * heads heads of one sequence.
        implementation: "cudnn", or for tests "xla", what `jax.nn.dot_product_attention` has everywhere.

    Raises:
        UserError: cuDNN is not there, or takes no inputs of this type or shape.
    """
    batch, queries, heads, _ = q.shape
    keys, windows = k.shape[1], 1 if bias is None else bias.shape[0]
    q, k, v = (_fill(_windows_to_heads(part, windows), 1) for part in (q, k, v))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (windows, heads, queries, keys)).reshape(1, -1, queries, keys)
        bias = _fill(_fill(bias, 2), 3).astype(q.dtype)
    filled = q.shape[1] > queries or k.shape[1] > keys
    lengths = [jnp.full(q.shape[0], length, jnp.int32) if filled else None for length in (queries, keys)]
    try:
        y = jax.nn.dot_product_attention(
            q, k, v, bias,
            query_seq_lengths=lengths[0], key_value_seq_lengths=lengths[1], implementation=implementation,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(f"attention='cudnn' is not possible here, use attention='auto': {error}") from error
    y = y[:, :queries].reshape(batch // windows, queries, windows, heads, -1)
    return y.swapaxes(1, 2).reshape(batch, queries, heads, -1)


def _windows_to_heads(x: Float[Array, "b n heads hd"], windows: int) -> Float[Array, "b2 n heads2 hd"]:
    batch, tokens, heads, size = x.shape
    x = x.reshape(batch // windows, windows, tokens, heads, size)
    return x.swapaxes(1, 2).reshape(batch // windows, tokens, windows * heads, size)


def _fill(x: jax.Array, axis: int) -> jax.Array:
    margin = [(0, 0)] * x.ndim
    margin[axis] = (0, -x.shape[axis] % MULTIPLE)
    return jnp.pad(x, margin)
