"""What LaPE applies to the PE of each layer: a LayerNorm, or a part of one."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Position = Float[Array, "n d"]

# The functions of the paper's Table 8: (normalise?, scale: "vector", "scalar" or None, bias?).
PE_NORMS = {
    "layernorm": (True, "vector", True),
    "norm": (True, None, False),
    "scalar": (False, "scalar", False),
    "vector": (False, "vector", False),
    "affine": (False, "vector", True),
    "scalar_norm": (True, "scalar", False),
    "vector_norm": (True, "vector", False),
    "identity": (False, None, False),
}


class PENorm(nn.Module):
    """f(w) = scale * (w - mean) / sqrt(var + eps) + bias over the channels, or the part of it that `kind` names.

    Runs in float32 (float64 if the PE is) whatever the model computes in, with the two-pass variance: a row of zeros,
    such as the class row of the 2-D sinusoid, leaves LNp_0 as the tiny row bias_0, and the next LayerNorm amplifies it
    by up to 1/sqrt(eps) = 1000, along with any error of E[x^2] - E[x]^2.

    Attributes:
        kind: one of `PE_NORMS`.
        eps: added to the (biased) variance, as in the block's LayerNorms.
        no_embed_tokens: so many rows at the start are zero and stay so, being those of tokens that have no PE.
    """

    kind: str = "layernorm"
    eps: float = 1e-6
    no_embed_tokens: int = 0

    @nn.compact
    def __call__(self, pe: Position) -> Position:
        normalise, scale, bias = PE_NORMS[self.kind]
        width = pe.shape[-1]
        y = pe.astype(jnp.promote_types(pe.dtype, jnp.float32))
        if normalise:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
            y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        if scale:
            y = y * self.param("scale", nn.initializers.ones, (width,) if scale == "vector" else (), jnp.float32)
        if bias:
            y = y + self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        if self.no_embed_tokens:
            y = jnp.pad(y[self.no_embed_tokens :], ((self.no_embed_tokens, 0), (0, 0)))
        return y.astype(jnp.promote_types(pe.dtype, jnp.float32))


class _Link(PENorm):
    """One PE norm of a chain: what it delivers is also handed on."""

    def __call__(self, pe: Position, _: None) -> tuple[Position, Position]:
        pe = super().__call__(pe)
        return pe, pe


def pe_norm_chain(kind: str, eps: float, no_embed_tokens: int, length: int) -> nn.Module:
    """`length` PE norms, each of which acts on what the one before it delivers, with parameters (length, ...).

    Called with (PE, None) it gives (the last PE, all PEs that are delivered (length, n, d)).
    """
    scanned = nn.scan(_Link, variable_axes={"params": 0}, split_rngs={"params": True}, length=length)
    return scanned(kind, eps, no_embed_tokens)
