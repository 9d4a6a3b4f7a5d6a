"""The Segmenters that are compared with torch_segmenter.py: numpy only."""

import dataclasses

import numpy as np

from tests.reference import cases
from tests.reference.cases import Case

RSTRUDEL = {"ln_eps": 1e-5, "resize": "bilinear", "upsample": "padded"}
MMSEG = {"ln_eps": 1e-6, "resize": "bicubic", "upsample": "image"}


@dataclasses.dataclass(frozen=True)
class SegmenterCase(Case):
    """One tiny Segmenter whose tables are those of 4 x 4 patches, on images of the size `at`."""

    image: tuple[int, int] = (16, 16)
    width: int = 16
    depth: int = 2
    mlp_ratio: float = 2.0
    ln_eps: float = 1e-5
    decoder: str = "mask"
    at: tuple[int, int] = (16, 16)
    resize: str = "bilinear"
    upsample: str = "padded"

    @property
    def name(self) -> str:
        """Test id and golden key, such as lape-learnable-layernorm-mask-18x27."""
        return "-".join([super().name, self.decoder, f"{self.at[0]}x{self.at[1]}"])

    @property
    def padded(self) -> tuple[int, int]:
        """The size of whole patches."""
        height, width = (-(-side // patch) * patch for side, patch in zip(self.at, self.patch, strict=True))
        return height, width

    def images(self) -> np.ndarray:
        """(B, H, W, C), as if already normalised."""
        return cases.uniform("images", (self.batch, *self.at, self.channels))

    def cotangent(self) -> np.ndarray:
        """(B, H, W, K): the loss whose gradients are compared is sum(logits * cotangent)."""
        return cases.uniform("cotangent", (self.batch, *self.at, self.classes))


ODD = (18, 27)  # 5 x 7 patches, with a margin of 2 and 1 pixels
CASES = [
    SegmenterCase(join="default"),
    SegmenterCase(join="default", at=ODD, distilled=True, label="distilled", **MMSEG),
    SegmenterCase(join="lape", at=ODD, **RSTRUDEL),
    SegmenterCase(join="lape", at=(12, 12), decoder="linear", distilled=True, label="distilled", **MMSEG),
    SegmenterCase(join="unshared", at=ODD, **RSTRUDEL),
    SegmenterCase(join="lape", at=ODD, pe="sincos_2d", decoder="linear"),
    SegmenterCase(join="shared", at=ODD, pe="sincos_1d", decoder="linear"),
    SegmenterCase(join="lape_sharing", at=ODD, pe="learnable+relative+peg", decoder="linear"),
]
