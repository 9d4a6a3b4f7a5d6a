"""The ViT-Adapters and UperNets of the parity tests: tiny ones, on images that windows do not divide; numpy only."""

import dataclasses

import numpy as np

from tests.reference import vit_adapter_states as states
from tests.reference.cases import uniform

HEADS = 2  # of blocks and deformable attentions


@dataclasses.dataclass(frozen=True)
class AdapterCase:
    """One model, whose table is that of 4 x 4 patches, and two images of the size `at`."""

    variant: str = "detection"
    join: str = "default"
    at: tuple[int, int] = (160, 288)
    depth: int = 8
    upernet: bool = False
    rope: str | None = None

    @property
    def name(self) -> str:
        """Test id and golden key, such as lape-detection-160x288."""
        family = "upernet" if self.upernet else self.variant
        return f"{self.join}-{family}-{self.at[0]}x{self.at[1]}{f'-{self.rope}' if self.rope else ''}"

    @property
    def sizes(self) -> states.Sizes:
        return dataclasses.replace(states.tiny(self.join), depth=self.depth, table_grid=(4, 4), rope=self.rope)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the images."""
        return self.at[0] // 16, self.at[1] // 16

    def state(self) -> dict[str, np.ndarray]:
        """The state dict by official names, statistics and counters included."""
        shapes = states.upernet_shapes if self.upernet else states.vit_adapter_shapes
        return states.random_state(shapes(self.sizes), self.grid, deform_heads=HEADS)

    def images(self) -> np.ndarray:
        """(B, H, W, C), as if already normalised."""
        return uniform("images", (2, *self.at, 3))

    def cotangents(self) -> dict[str, np.ndarray]:
        """By output, (B, h, w, C): the loss whose gradients are compared is the sum of outputs * cotangents."""
        (height, width), channels = self.at, self.sizes.classes if self.upernet else self.sizes.width
        strides = {"masks": 4, "aux": 16} if self.upernet else {f"map{i}": 2 ** (i + 1) for i in (1, 2, 3, 4)}
        shapes = {name: (2, height // stride, width // stride, channels) for name, stride in strides.items()}
        if self.upernet:
            shapes["pixels"] = (2, *self.at, channels)
        return {name: uniform(f"cotangent {name}", shape) for name, shape in shapes.items()}

    @property
    def kept(self) -> str:
        """Of which output the goldens have all numbers."""
        return "aux" if self.upernet else "map4"


CASES = [
    AdapterCase(join="lape"),
    AdapterCase(variant="segmentation", at=(64, 96), depth=4),
    AdapterCase(variant="segmentation", join="lape", at=(64, 64), depth=4, upernet=True),
]
MORE = [  # against the live reference alone
    AdapterCase(at=(224, 224)),
    AdapterCase(variant="segmentation", join="lape"),
    AdapterCase(variant="segmentation", join="lape", at=(224, 224)),
    AdapterCase(variant="segmentation", at=(160, 288), depth=4, upernet=True),
]
