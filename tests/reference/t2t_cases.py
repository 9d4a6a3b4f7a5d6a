"""The T2T-ViTs that are compared with torch_t2t.py: numpy only."""

import dataclasses

from tests.reference.cases import Case


@dataclasses.dataclass(frozen=True)
class T2TCase(Case):
    """One tiny T2T-ViT, with Performers or transformers before the encoder; images of 2 x 3 patches of 16 pixels."""

    tokens: str = "performer"
    token_dim: int = 6
    pe: str = "sincos_1d"
    image: tuple[int, int] = (32, 48)
    patch: tuple[int, int] = (16, 16)
    width: int = 16
    depth: int = 2
    mlp_ratio: float = 2.0
    ln_eps: float = 1e-5
    classes: int = 3

    @property
    def name(self) -> str:
        return f"{self.tokens}-{super().name}"


CASES = [
    T2TCase(join="default"),
    T2TCase(join="lape"),
    T2TCase(pe="learnable+relative", join="unshared"),
    T2TCase(tokens="transformer", join="default"),
    T2TCase(tokens="transformer", pe="learnable", join="lape"),
]
