"""The Mask R-CNNs of the parity tests: tiny ones, on two images smaller than their canvas; numpy only."""

import dataclasses
import math
import pathlib

import numpy as np

from tests.reference import mask_rcnn_states as states
from tests.reference.cases import sketch, uniform

HEADS = 2  # of blocks and deformable attentions
RAW = 100  # numbers of an answer that are stored as they are; of more, a sketch
IN_FULL = (
    "proposal",
    "train proposal",
    "train sampled",
    "boxes ",
    "scores ",
    "scaled boxes ",
    "scaled scores ",
    "box deltas",
)

# Regions that are hard to read (x1, y1, x2, y2), every number a sum of a few powers of two: inside; at the limits of
# the levels, 112, 224, 448; long ones; beyond all borders; smaller than a pixel; without width; all outside.
REGIONS = (
    (10.25, 7.5, 51.75, 60.125),
    (0, 0, 112, 112),
    (3, 5, 114.875, 117),
    (-60, -70.5, 164, 153.5),
    (-100, -200, 348, 248),
    (4.5, 20, 127.5, 24.25),
    (33.25, 0, 37.5, 95.75),
    (0.125, 40, 128, 41),
    (-20, -10, 9.5, 12.25),
    (120, 88.5, 140, 109.75),
    (60.25, 40.5, 60.75, 40.625),
    (50, 20, 50, 60),
    (200, 150, 260, 190),
    (-3, -3, 500, 480),
)


@dataclasses.dataclass(frozen=True)
class DetectorCase:
    """One model, and two images of `sizes` (height, width) on a canvas of the size `at`.

    `scales` (of x and y) are what the images were resized by. `objects`: for each image (label, x1, y1, x2, y2).
    """

    join: str
    at: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    scales: tuple[tuple[float, float], ...]
    objects: tuple[tuple[tuple[float, ...], ...], ...]
    depth: int = 4
    pre_nms_train: int = 300  # these four: of the model
    pre_nms_test: int = 200
    proposals: int = 150
    detections: int = 20
    # Sampled ones of an image: positives, and with negatives, at most.
    anchors: tuple[tuple[int, int], ...] = ((8, 32), (3, 20))
    regions: tuple[tuple[int, int], ...] = ((6, 20), (2, 12))

    @property
    def name(self) -> str:
        return f"{self.join}-{self.at[0]}x{self.at[1]}"

    @property
    def shapes(self) -> states.Sizes:
        return states.tiny(self.join, self.depth)

    def state(self) -> dict[str, np.ndarray]:
        """The state dict by official names, statistics and counters included."""
        return states.random_values(self.shapes, (self.at[0] // 16, self.at[1] // 16))

    def images(self) -> np.ndarray:
        """(B, H, W, C), as if already normalised, zero beyond `sizes`."""
        found = uniform("images", (len(self.sizes), *self.at, 3))
        for image, (height, width) in zip(found, self.sizes, strict=True):
            image[height:] = 0
            image[:, width:] = 0
        return found

    def pad_shape(self, image: int) -> tuple[int, int]:
        height, width = self.sizes[image]
        return 32 * math.ceil(height / 32), 32 * math.ceil(width / 32)

    def boxes(self, image: int) -> np.ndarray:
        return np.array([found[1:] for found in self.objects[image]], np.float64).reshape(-1, 4)

    def labels(self, image: int) -> np.ndarray:
        return np.array([found[0] for found in self.objects[image]], np.int64)

    def bitmaps(self, image: int) -> np.ndarray:
        """(g, pad_h, pad_w) uint8: of each object an ellipse in its box, without a disc right of its middle."""
        rows, columns = (np.arange(side) + 0.5 for side in self.pad_shape(image))
        found = np.zeros((len(self.objects[image]), *self.pad_shape(image)), np.uint8)
        for bitmap, (x1, y1, x2, y2) in zip(found, self.boxes(image), strict=True):
            u = (2 * columns - x1 - x2) / (x2 - x1)
            v = (2 * rows[:, None] - y1 - y2) / (y2 - y1)
            bitmap[:] = (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + (v + 0.1) ** 2 > 0.09)
        return found


CASES = [
    DetectorCase(
        join="default",
        at=(96, 128),
        sizes=((90, 120), (64, 101)),
        scales=((1.25, 1.2), (0.5, 0.5)),
        # The first lies in nine anchors that tie; the others have the sides of anchors, nearly, and one is best.
        objects=(
            ((3, 48, 40, 71, 63), (0, 10.3, 12.9, 57.1, 36.6), (1, 52.7, 8.4, 118.2, 74.6)),
            ((4, 20.1, 5.7, 41.4, 49.9), (2, 62.2, 28.6, 95.5, 62.1)),
        ),
    ),
    DetectorCase(
        join="lape",
        proposals=210,
        at=(128, 224),
        sizes=((128, 200), (100, 224)),
        scales=((2.0, 2.0), (0.8, 0.75)),
        objects=(((2, 11.3, 12.9, 104.6, 60.2), (2, 97.7, 0.4, 144.9, 88.3)), ()),
    ),
]


# ---- What is stored of an answer


def stored(answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whole numbers, boxes, scores, and what is short as they are; of others a `sketch`."""
    found = {}
    for name, value in answer.items():
        whole = not np.issubdtype(value.dtype, np.floating)
        short = name.startswith(IN_FULL) or (value.size <= RAW and not name.startswith(("grad ", "moved ")))
        found[name] = value if whole or short else sketch(name, value)
    return found


def pack(case: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As three arrays of an .npz file, which takes more room for an array than for many numbers."""
    groups: dict[str, list[np.ndarray]] = {"whole": [], "real": []}
    names = []
    for name, value in values.items():
        kind = "real" if np.issubdtype(value.dtype, np.floating) else "whole"
        names.append(f"{name}|{kind}|{','.join(map(str, value.shape))}")
        groups[kind].append(np.ravel(value))
    whole, real = np.concatenate(groups["whole"]), np.concatenate(groups["real"])
    assert np.abs(whole).max() < 2**15
    return {f"{case} names": np.array(names), f"{case} whole": whole.astype(np.int16), f"{case} real": real}


def golden(path: pathlib.Path, case: str) -> dict[str, np.ndarray]:
    """What `stored` gave for a case, from the file of its goldens; whole numbers are int64."""
    with np.load(path) as file:
        names, whole, real = (file[f"{case} {kind}"] for kind in ("names", "whole", "real"))
    left, found = {"whole": whole.astype(np.int64), "real": real}, {}
    for name, kind, shape in (line.split("|") for line in names):
        shape = tuple(map(int, shape.split(","))) if shape else ()
        size = math.prod(shape)
        found[name], left[kind] = left[kind][:size].reshape(shape), left[kind][size:]
    assert not any(map(len, left.values()))
    return found
