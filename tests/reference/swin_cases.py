"""The Swin Transformers that are compared with torch_swin.py: numpy only."""

import dataclasses

from tests.reference.cases import Case


@dataclasses.dataclass(frozen=True)
class SwinCase(Case):
    """One tiny Swin; two stages of 12 x 12 and 6 x 6 tokens with windows of 3 x 3 by default, shifted in both."""

    image: tuple[int, int] = (24, 24)
    patch: tuple[int, int] = (2, 2)
    width: int = 8
    depths: tuple[int, ...] = (2, 2)
    stage_heads: tuple[int, ...] = (2, 4)
    window: int = 3
    mlp_ratio: float = 2.0
    ln_eps: float = 1e-5
    classes: int = 3
    pool: str = "gap"


# 16 x 8 tokens in shifted windows of 4 x 4, then 8 x 4 in windows of their width, unshifted; an odd depth.
OBLONG = {"image": (32, 16), "depths": (3, 1), "stage_heads": (1, 2), "window": 4, "label": "oblong"}
CASES = [
    SwinCase(pe="none", join="default"),
    SwinCase(pe="relative", join="default"),
    SwinCase(pe="learnable", join="default"),
    SwinCase(pe="learnable+relative", join="default"),
    SwinCase(pe="learnable+relative", join="lape"),
    SwinCase(pe="sincos_2d+relative", join="lape_sharing", pe_norm="vector_norm"),
    SwinCase(pe="sincos_1d", join="shared"),
    SwinCase(pe="learnable+relative", join="unshared"),
    SwinCase(pe="sincos_2d+relative", join="lape", **OBLONG),
    SwinCase(pe="learnable+relative", join="pvg"),
    SwinCase(pe="learnable", join="mpvg"),
]
