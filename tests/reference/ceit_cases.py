"""The CeiTs that are compared with torch_ceit.py: numpy only."""

import dataclasses

from tests.reference.cases import Case


@dataclasses.dataclass(frozen=True)
class CeitCase(Case):
    """One tiny CeiT on images of 2 x 3 patches, which are oblong."""

    image: tuple[int, int] = (16, 12)
    patch: tuple[int, int] = (8, 4)
    width: int = 16
    depth: int = 2
    mlp_ratio: float = 2.0
    stem_width: int = 8
    classes: int = 3
    batch: int = 3


CASES = [
    CeitCase(join="default"),
    CeitCase(pe="sincos_2d+relative", join="lape_sharing", pe_norm="scalar_norm"),
    CeitCase(pe="none", join="default", layer_scale=True, channels=1),
    CeitCase(pe="learnable+peg", join="lape"),  # a PEG between the blocks, so that they run in segments
]
