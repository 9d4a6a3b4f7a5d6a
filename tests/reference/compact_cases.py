"""The Compact Transformers that are compared with torch_compact.py: numpy only."""

import dataclasses

from tests.reference.cases import Case


@dataclasses.dataclass(frozen=True)
class CompactCase(Case):
    """One tiny ViT-Lite (`pool` "token"), CVT ("seq") or CCT ("seq", with `convs` layers of `kernel`)."""

    family: str = "vit_lite"
    convs: int = 0
    kernel: int = 3
    mlp_ratio: float = 2.0
    ln_eps: float = 1e-5
    width: int = 16
    depth: int = 2
    classes: int = 3

    @property
    def name(self) -> str:
        return f"{self.family}-{super().name}"

    @property
    def grid(self) -> tuple[int, int]:
        """What PyTorch's formulas for convolutions (no dilation) and pooling give."""
        if not self.convs:
            return super().grid
        stride, padding = max(1, self.kernel // 2 - 1), max(1, self.kernel // 2)
        sides = self.image
        for _ in range(self.convs):
            sides = [(side + 2 * padding - self.kernel) // stride + 1 for side in sides]
            sides = [(side + 2 * 1 - 3) // 2 + 1 for side in sides]
        return tuple(sides)


# All sequences have 16 rows, so that the operations of one case serve the others, compiled.
VIT_LITE = {"family": "vit_lite", "image": (12, 20)}
CVT = {"family": "cvt", "pool": "seq", "image": (8, 32)}
CCT_3X1 = {"family": "cct_3x1", "pool": "seq", "convs": 1, "image": (3, 16)}
CCT_3X2 = {"family": "cct_3x2", "pool": "seq", "convs": 2, "image": (13, 15)}  # odd sides on the way
CCT_7X2 = {"family": "cct_7x2", "pool": "seq", "convs": 2, "kernel": 7, "image": (17, 120)}

CASES = [
    CompactCase(pe="learnable", join="default", **VIT_LITE),
    CompactCase(pe="learnable", join="lape", **VIT_LITE),
    CompactCase(pe="learnable", join="unshared", **VIT_LITE),
    CompactCase(pe="learnable", join="default", **CVT),
    CompactCase(pe="sincos_1d", join="default", **CVT),
    CompactCase(pe="sincos_2d", join="lape", **CVT),
    CompactCase(pe="learnable", join="lape", **CCT_3X1),
    CompactCase(pe="learnable+relative", join="shared", **CCT_3X1),
    CompactCase(pe="relative", join="default", **CCT_3X1),
    CompactCase(pe="sincos_1d", join="lape_sharing", pe_norm="scalar_norm", **CCT_3X2),
    CompactCase(pe="learnable", join="lape", **CCT_7X2),
]
