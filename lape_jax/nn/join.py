"""How a position embedding joins the tokens: the heart of LaPE.

A joining method answers four questions. With alpha the token embeddings, w the position table and x_l what block l
receives, l = 0 .. L-1:

(a) `stem`: what are x_0 and the PE handed to block 0?
(b) `block`: what enters the self-attention of block l (and does x_l itself change)?
(c) `block`, too: which PE is handed on to block l+1?
(d) `final`: what do x_L and the position become behind the last block?

Whatever else is asked of a method stands on its class, as an attribute of `Joining`, and nowhere else.

The parameters of all blocks are stacked, (L, ...), and one program scans over them. PVG, whose block 0 has no PE norm,
does not fit: its norms are a stack of L - 1 apart (`norms_apart`). As the chain of PEs knows no tokens, it is run
before the blocks, which are then given a PE each, as from tables of their own; that of block 0 is zeros.

To add a method, write one class here, name it in `JOINS`, and add one test. The PE is batch-free everywhere: (N, D).
Source: LaPE, ICCV 2023, equations 8-11 and section 3.3; names as in the paper's Table 7. PVG and MPVG:
Lee, Ham and Kim, AAAI 2025 (arXiv:2502.02919), Figure 3.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
from jaxtyping import Array, Float

Tokens = Float[Array, "b n d"]
Position = Float[Array, "n d"]
Table = Float[Array, "*l n d"]  # of the model, or of each layer
BASELINE, PUBLISHED, FOLDED = "default", "lape", "folded"
Norm = Callable[[jax.Array], jax.Array]  # a LayerNorm; `pe_norm` is None where the method has none


class Joined(NamedTuple):
    """What `block` answers for one block."""

    tokens: jax.Array  # the residual stream x_l, perhaps changed
    attention_input: jax.Array  # what the qkv projection sees
    delivered: jax.Array | None  # the PE as this block delivers it, for those who study it
    handed_on: jax.Array | None  # the PE that block l+1 receives


class Joining:
    """A method: three functions, of which `block` has to be written, and what others need to know of it.

    Attributes:
        title: the name of the method in tables.
        in_stream: whether the PE travels in the residual stream, and reaches attention through the first LayerNorm.
        delivers: whether a block adds what it delivers behind that LayerNorm, to the normalised tokens. (If not, what
            it delivers, if anything, is added to the residual stream.)
        normalises_pe: whether there is a PE norm in each block.
        serial: whether that acts on what the block before has delivered.
        norms_apart: whether there is one for each block but the first, in a stack of their own, `pe_norms`. A block is
            then given what its PE norm delivers, and the first one zeros.
        last_norm: whether there is one for `final`, which has the name `pe_norm_last`.
        table_per_layer: whether each block has a table of its own.
        norm1_bias: whether a block's first LayerNorm has its bias.
        trainable: whether it is a method to train with. If not, its tables are constants that hold for the weights and
            the grid which they were computed from.
        pools: the ways to pool the tokens that it is defined for; () for all.
        in_stages: the method as models with several stages have it, if that is another.
        folds_into: the method that gives the same logits for inference without (some of) its PE norms, if any. What
            `lape_jax.port.fold` does follows from what the two differ in: PE norms of blocks become constants of their
            attention; that of a last norm, LNp(w), must be added to tokens of which the head sees the mean.
        stem_only: whether all that it does is to add the table to x_0. It then works without a table, too.

    The last three are claims about all that a method does. They are not inherited: who derives a class from another
    makes them anew, or does without.
    """

    title: ClassVar[str]
    in_stream: ClassVar[bool]
    delivers: ClassVar[bool]
    normalises_pe: ClassVar[bool] = False
    serial: ClassVar[bool] = False
    norms_apart: ClassVar[bool] = False
    last_norm: ClassVar[bool] = False
    table_per_layer: ClassVar[bool] = False
    norm1_bias: ClassVar[bool] = True
    trainable: ClassVar[bool] = True
    pools: ClassVar[tuple[str, ...]] = ()
    in_stages: ClassVar["Joining | None"] = None
    folds_into: ClassVar[str | None] = None
    stem_only: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        for claim in ("in_stages", "folds_into", "stem_only"):
            if claim not in vars(cls):
                setattr(cls, claim, getattr(Joining, claim))

    @property
    def has_norms(self) -> bool:
        """Whether it has any PE norms, and the choice of their kind means something."""
        return self.normalises_pe or self.norms_apart or self.last_norm

    def stem(self, tokens: Tokens, table: Table | None) -> tuple[Tokens, Position | None]:
        """(x_0, the PE handed to block 0); `table` is None where a model has none, or all layers' tables."""
        return tokens, None if self.table_per_layer else table

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        """What block l makes of x_l and `pe`, the PE that it is handed, or its own table."""
        raise NotImplementedError

    def final(
        self,
        x: Tokens,
        pe: Float[Array, "#n d"] | None,
        table: Float[Array, "*_l _n _d"] | None,
        norm: Norm,
        pe_norm: Norm | None,
    ) -> Float[Array, "b n d"]:
        """What the head sees, before the tokens are pooled: by default LN(x_L).

        Args:
            x: x_L. (A CeiT gives the class tokens of all layers, (b, L, D), and of `pe` and `table` the row that they
                share, (1, D).)
            pe: handed on by the last block.
            table: as for `stem`; where there are several stages, brought to the last one as the PE is.
            norm: the model's final LayerNorm.
            pe_norm: a PE norm if there is `last_norm`, else None.
        """
        return norm(x)


class Default(Joining):
    """x_0 = alpha + w; attention sees LN1_l(x_l). The PE then travels in the residual stream."""

    title = "default"
    in_stream, delivers = True, False
    stem_only = True

    def stem(self, tokens: Tokens, table: Table | None) -> tuple[Tokens, Position | None]:
        return (tokens if table is None else (tokens + table).astype(tokens.dtype)), None

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        return Joined(x, norm1(x), None, pe)


class Shared(Joining):
    """x_0 = alpha; x_l + w replaces x_l, so w accumulates in the residual stream; attention sees LN1_l(x_l + w)."""

    title = "shared"
    in_stream, delivers = True, False

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        x = (x + pe).astype(x.dtype)
        return Joined(x, norm1(x), pe, pe)


class Unshared(Shared):
    """As `Shared`, but every block adds a table w^(l) of its own."""

    title = "unshared"
    table_per_layer = True


class LapeSharing(Joining):
    """x_0 = alpha; attention sees LN1_l(x_l) + LNp_l(w): each block normalises the same table (non-serial LaPE)."""

    title = "LaPE (sharing)"
    in_stream, delivers = False, True
    normalises_pe = True
    folds_into = FOLDED

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        p = pe_norm(pe)
        return Joined(x, norm1(x) + p, p, pe)


class Lape(LapeSharing):
    """x_0 = alpha; pe_l = LNp_l(pe_{l-1}); attention sees LN1_l(x_l) + pe_l; pe_l is handed on. The published method.

    The sum enters q, k and v, and nothing else: not the residual stream, the MLP or the final LayerNorm.
    """

    title = "LaPE"
    serial = True
    folds_into = FOLDED

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        p = pe_norm(pe)
        return Joined(x, norm1(x) + p, p, p)


class Folded(Joining):
    """x_0 = alpha; attention sees g_l * (x_l - mean) / sqrt(var + eps) + c_l, where LN1_l has lost its bias to c_l.

    What `lape_jax.port.fold` makes of both kinds of LaPE for inference, with c_l = bias of LN1_l + pe_l: the same sums
    in as many operations as `Default` needs. Not a method of the paper.
    """

    title = "folded"
    in_stream, delivers = False, True
    table_per_layer = True
    norm1_bias = False
    trainable = False

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        return Joined(x, norm1(x) + pe, pe, pe)


class PvgInStages(Lape):
    """`Pvg` for several stages (Swin): as LaPE, but x_0 = alpha + w. The published counts have a norm in each block."""

    title = "PVG"
    in_stream = True

    def stem(self, tokens: Tokens, table: Table | None) -> tuple[Tokens, Position | None]:
        return (tokens + table).astype(tokens.dtype), table


class Pvg(Joining):
    """x_0 = alpha + w; attention sees LN1_0(x_0), then LN1_l(x_l) + pe_l with pe_l = LNp_l(pe_{l-1}) and pe_0 = w.

    There is no class token: the head sees the mean over n of LN(x_L).
    """

    title = "PVG"
    in_stream, delivers = True, True
    serial = True
    norms_apart = True
    pools = ("gap",)
    in_stages = PvgInStages()

    def stem(self, tokens: Tokens, table: Table | None) -> tuple[Tokens, Position | None]:
        return (tokens + table).astype(tokens.dtype), None

    def block(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        return Joined(x, norm1(x) + pe, pe, None)


class _Last:
    """The head sees the mean over n of LN(x_L) + LNp_last(w): what MPVG has beside PVG.

    The second term is the same for all images, m = mean_n LNp_last(w). With a head W y + c, MPVG is PVG whose head has
    the bias c + W m: there is no function of images that only one of them can compute.
    """

    title = "MPVG"
    last_norm = True

    def final(
        self, x: Tokens, pe: Position | None, table: Position, norm: Norm, pe_norm: Norm
    ) -> Float[Array, "b n d"]:
        return norm(x) + pe_norm(table)


class MpvgInStages(_Last, PvgInStages):
    """`Mpvg` for several stages."""


class Mpvg(_Last, Pvg):
    """As `Pvg`, but the head sees the mean over n of LN(x_L) + LNp_last(w)."""

    in_stages = MpvgInStages()
    folds_into = "pvg"


JOINS: dict[str, Joining] = {
    BASELINE: Default(),
    "shared": Shared(),
    "unshared": Unshared(),
    "lape_sharing": LapeSharing(),
    PUBLISHED: Lape(),
    "pvg": Pvg(),
    "mpvg": Mpvg(),
    FOLDED: Folded(),
}


def those(asked: Callable[[Joining], object]) -> str:
    """The names of the methods of which `asked` is true, in a text: 'a', 'b' and 'c'."""
    *names, last = sorted(repr(name) for name, join in JOINS.items() if asked(join))
    return f"{', '.join(names)} and {last}" if names else last
