"""Position tables: what a position looks like before anything is done with it.

Absolute tables have one row per token in sequence order: class token, distillation token, then the patches row by row.
Which of the first two exist depends on the model; together they are the `num_prefix_tokens`. Frozen tables are NumPy
float64 constants, so that a model in float64 sees them exactly; they are never parameters.

A position embedding has a name, `pe`, of up to four parts joined by "+", in this order: an absolute table (how it
joins the tokens is another choice, `lape_jax.nn.join`); "relative", a bias on the attention logits; one of `ROPES`,
which turn queries and keys (`lape_jax.nn.rope`); "peg", a convolution between blocks (`lape_jax.nn.peg`). "none" is
none of them.
"""

import itertools

import numpy as np
from jaxtyping import Float64, Int32

from lape_jax.errors import UserError, nearest

LEARNABLE, SINCOS_1D, SINCOS_2D, SINCOS_2D_MOCO = "learnable", "sincos_1d", "sincos_2d", "sincos_2d_moco"
ABSOLUTE = (LEARNABLE, SINCOS_1D, SINCOS_2D, SINCOS_2D_MOCO)
RELATIVE, PEG, NONE = "relative", "peg", "none"
ROPES = ROPE_AXIAL, ROPE_MIXED, ROPE_DINOV3 = "rope_axial", "rope_mixed", "rope_dinov3"
# Those of one part first.
KINDS = tuple(
    sorted(
        (
            "+".join(filter(None, (absolute, relative, rope, peg))) or NONE
            for peg, rope, relative, absolute in itertools.product(
                ("", PEG), ("", *ROPES), ("", RELATIVE), (*ABSOLUTE, "")
            )
        ),
        key=lambda pe: pe.count("+"),
    )
)


def parse_pe(pe: str) -> tuple[str | None, bool]:
    """Splits a `pe` name into (absolute table or None, whether there is a relative position bias).

    Raises:
        UserError: `pe` is not one of `KINDS`.
    """
    if pe not in KINDS:
        raise UserError(f"pe={nearest(pe, KINDS)}")
    parts = pe.split("+")
    absolute = parts[0] if parts[0] in ABSOLUTE else None
    return absolute, RELATIVE in parts


def parse_rope(pe: str) -> str | None:
    """Which of `ROPES` the `pe` of this name has, if any."""
    return next((part for part in pe.split("+") if part in ROPES), None)


def has_peg(pe: str) -> bool:
    """Whether the `pe` of this name has a positional encoding generator."""
    return PEG in pe.split("+")


def frozen(kind: str, grid: tuple[int, int], width: int, num_prefix_tokens: int = 0) -> Float64[np.ndarray, "n d"]:
    """The table of a `kind` that is not learned.

    Raises:
        UserError: `width` does not suit it.
    """
    if kind == SINCOS_1D:
        return sincos_1d(num_prefix_tokens + grid[0] * grid[1], width)
    return (sincos_2d if kind == SINCOS_2D else sincos_2d_moco)(grid, width, num_prefix_tokens)


def sincos_1d(rows: int, width: int) -> Float64[np.ndarray, "n d"]:
    """1-D sinusoid over the token sequence (Vaswani et al. 2017): the first row, the class token's, is position 0.

    w[p, i] = sin(p / 10000^(2 floor(i/2) / width)) for even i, cos of the same for odd i.
    """
    position = np.arange(rows, dtype=np.float64)[:, None]
    channel = np.arange(width)
    angle = position / 10000.0 ** (2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))


def sincos_2d(grid: tuple[int, int], width: int, num_prefix_tokens: int = 0) -> Float64[np.ndarray, "n d"]:
    """2-D sinusoid over the patch grid; the `num_prefix_tokens` before the patches are zero.

    With h = width/2, m = floor((d mod h)/2) and omega_m = 10000^(-2m/h), the argument is column * omega_m for channels
    d < h and row * omega_m for the rest; even d take the sine, odd d the cosine (LaPE reference code).

    Raises:
        UserError: `width` is not divisible by 4.
    """
    if width % 4:
        raise UserError(f"pe='sincos_2d' needs a width divisible by 4, not {width}")
    half = width // 2
    channel = np.arange(half)
    omega = 10000.0 ** (-2 * (channel // 2) / half)

    def encode(coordinate):
        angle = coordinate[:, None] * omega
        return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))

    row, column = (axis.reshape(-1).astype(np.float64) for axis in np.indices(grid))
    patches = np.concatenate([encode(column), encode(row)], axis=1)
    return np.concatenate([np.zeros((num_prefix_tokens, width)), patches])


def sincos_2d_moco(grid: tuple[int, int], width: int, num_prefix_tokens: int = 0) -> Float64[np.ndarray, "n d"]:
    """The 2-D sinusoid of MoCo v3 and big_vision; the `num_prefix_tokens` before the patches are zero.

    With q = width/4 and omega_k = 10000^(-k/(q-1)), k = 0..q-1, so that the last frequency is exactly 1/10000, the
    channels are sin(column omega), cos(column omega), sin(row omega), cos(row omega), q of each.
    Source: Chen et al. 2021 (arXiv:2104.02057); `posemb_sincos_2d` in google-research/big_vision.

    Raises:
        UserError: `width` is not divisible by 4, or less than 8.
    """
    if width % 4 or width < 8:
        raise UserError(f"pe='sincos_2d_moco' needs a width of at least 8 that is divisible by 4, not {width}")
    quarter = width // 4
    omega = 10000.0 ** (-np.arange(quarter) / (quarter - 1))
    row, column = (axis.reshape(-1, 1) * omega for axis in np.indices(grid))
    patches = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
    return np.concatenate([np.zeros((num_prefix_tokens, width)), patches])


def relative_position_index(grid: tuple[int, int]) -> Int32[np.ndarray, "n n"]:
    """Row of the relative bias table for each (query, key) pair of patches (Swin, eq. 4).

    index[i, j] = (r_i - r_j + gh - 1) * (2 gw - 1) + (c_i - c_j + gw - 1), from 0 to (2gh-1)(2gw-1) - 1.
    """
    row, column = (axis.reshape(-1) for axis in np.indices(grid))
    height, width = grid
    down = row[:, None] - row[None, :] + height - 1
    right = column[:, None] - column[None, :] + width - 1
    return (down * (2 * width - 1) + right).astype(np.int32)
