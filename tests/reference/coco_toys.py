"""Toy sets for the evaluation of detections, with all that its figures hang on: numpy only.

Images, objects and detections are pure functions of the toy. All numbers are small fractions of powers of two, which
float32 and JSON keep. The figures that pycocotools gives are stored by `tests/models/golden/make_coco_toys.py`.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

HEIGHT, WIDTH = 112, 144  # of every image
SMALL, LARGE = 32**2, 96**2  # the limits of the ranges of areas


@dataclasses.dataclass(frozen=True)
class Found:
    """One detection: the box is (x, y, width, height)."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float
    bitmap: np.ndarray  # (HEIGHT, WIDTH) uint8


@dataclasses.dataclass(frozen=True)
class Toy:
    """`truth` is what a COCO annotation file has; `found`, by image and falling scores, what a model says.

    Where detections of an image have the same score, their order counts.
    """

    name: str
    truth: dict
    found: list[Found]


def rectangle(box: Sequence[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def triangle(box: Sequence[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y + h, x + w / 2, y, x + w, y + h]]


def ellipse(box: Sequence[float], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width) uint8: the pixels whose centres lie in the ellipse of the box."""
    x, y, w, h = box
    u = (np.arange(width) + 0.5 - x - w / 2) / (w / 2)
    v = (np.arange(height)[:, None] + 0.5 - y - h / 2) / (h / 2)
    return (u**2 + v**2 <= 1).astype(np.uint8)


def block(box: Sequence[float]) -> np.ndarray:
    """(HEIGHT, WIDTH) uint8: the pixels whose centres lie in the box."""
    x, y, w, h = box
    columns, rows = np.arange(WIDTH) + 0.5, np.arange(HEIGHT)[:, None] + 0.5
    return ((columns > x) & (columns < x + w) & (rows > y) & (rows < y + h)).astype(np.uint8)


def counts(bitmap: np.ndarray) -> dict:
    """Uncompressed run lengths, column by column, zeros first."""
    flat = np.concatenate([[0], bitmap.T.ravel(), [2]])
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes]))
    return {"size": list(bitmap.shape), "counts": [int(run) for run in runs]}


class Maker:
    """Draws for one toy, and collects."""

    def __init__(self, name: str, images: Sequence[int], categories: Sequence[int]):
        self.name, self.stream = name, np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        self.truth: dict = {"info": {}, "licenses": [], "annotations": []}
        self.truth["images"] = [
            {"id": i, "file_name": f"{i:012}.jpg", "height": HEIGHT, "width": WIDTH} for i in images
        ]
        self.truth["categories"] = [{"id": i, "name": f"thing {i}", "supercategory": "toy"} for i in categories]
        self.found: list[Found] = []

    def number(self, low: float, high: float, step: float = 0.25) -> float:
        """A multiple of the step between low and high."""
        return low + step * int(self.stream.random() * ((high - low) / step + 1))

    def box(self, least: float = 6, most: float = 104) -> tuple[float, float, float, float]:
        w, h = self.number(least, most), self.number(least, most)
        return self.number(0, WIDTH - w), self.number(0, HEIGHT - h), w, h

    def near(self, box: Sequence[float], share: float) -> tuple[float, float, float, float]:
        """A box like this one, moved and stretched by at most that share of its sides, within the image."""
        x, y, w, h = box
        left, right, top, bottom = (self.number(-share, share, share / 8) for _ in range(4))
        x1, x2 = round4(max(0, x + left * w)), round4(min(WIDTH, x + w + right * w))
        y1, y2 = round4(max(0, y + top * h)), round4(min(HEIGHT, y + h + bottom * h))
        return x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)

    def object(self, image: int, category: int, box: Sequence[float], form: str = "rectangle", crowd: bool = False):
        segmentation = {"rectangle": rectangle, "triangle": triangle}.get(form, lambda box: counts(ellipse(box)))(box)
        area = {"rectangle": box[2] * box[3], "triangle": box[2] * box[3] / 2}.get(form, int(ellipse(box).sum()))
        annotation = {"id": 7 + 3 * len(self.truth["annotations"]), "image_id": image, "category_id": category}
        annotation |= {"bbox": list(box), "area": area, "iscrowd": int(crowd), "segmentation": segmentation}
        self.truth["annotations"].append(annotation)

    def detect(self, image: int, category: int, box: Sequence[float], score: float, form: str = "block"):
        bitmap = block(box) if form == "block" else ellipse(box)
        self.found.append(Found(image, category, tuple(box), score, bitmap))

    def done(self) -> Toy:
        order = sorted(range(len(self.found)), key=lambda i: (self.found[i].image_id, -self.found[i].score, i))
        return Toy(self.name, self.truth, [self.found[i] for i in order])


def round4(value: float) -> float:
    return round(4 * value) / 4


def scattered(maker: Maker, image: int, category: int, objects: int, levels: int, share: float = 0.25, **sizes):
    """Objects of one class; of most a detection or several near them, and others that find nothing."""
    forms = ("rectangle", "triangle", "ellipse")
    for _ in range(objects):
        box, form = maker.box(**sizes), forms[int(maker.number(0, 2, 1))]
        maker.object(image, category, box, form)
        for _ in range(int(maker.number(0, 3, 1))):
            shape = "block" if form == "rectangle" else "ellipse"
            maker.detect(image, category, maker.near(box, share), maker.number(1, levels, 1) / 64, shape)
    for _ in range(int(maker.number(0, 2, 1))):
        maker.detect(image, category, maker.box(), maker.number(1, levels, 1) / 64)


def ties() -> Toy:
    """Four different scores in all, and image ids that are not in order."""
    maker = Maker("ties", [5, 3, 139, 21, 8, 13, 2], [1, 4, 90])
    for image in maker.truth["images"]:
        for category in (1, 4, 90):
            scattered(maker, image["id"], category, int(maker.number(0, 4, 1)), 4)
    # The same place twice with one score: which of the two comes first decides.
    for image in (3, 21, 139):
        maker.object(image, 4, (40, 40, 40, 40))
        maker.detect(image, 4, (30, 40, 40, 40), 4 / 64)
        maker.detect(image, 4, (42, 40, 40, 40), 4 / 64)
        maker.detect(image, 4, (40, 40, 40, 40), 4 / 64)
    return maker.done()


def crowds() -> Toy:
    """Crowds take any number of detections by their share, and only what no object has; one has a class for itself."""
    maker = Maker("crowds", range(1, 7), [2, 3, 5])
    for image in range(1, 7):
        scattered(maker, image, 2, 2, 64)
        region = maker.box(50, 100)
        maker.object(image, 2, region, "ellipse", crowd=True)
        for _ in range(4):
            inner = maker.near((region[0] + region[2] / 4, region[1] + region[3] / 4, 24, 24), 0.25)
            maker.detect(image, 2, inner, maker.number(1, 64, 1) / 64)
        scattered(maker, image, 3, 1, 64)
        maker.object(image, 5, maker.box(60, 90), "ellipse", crowd=True)
        maker.detect(image, 5, maker.box(), maker.number(1, 64, 1) / 64)
    maker.object(6, 3, (10, 10, 60, 60), "rectangle")
    maker.object(6, 3, (8, 8, 64, 64), "ellipse", crowd=True)
    maker.detect(6, 3, (11, 10, 59, 60), 60 / 64)
    maker.detect(6, 3, (12, 12, 50, 50), 61 / 64)
    return maker.done()


def areas() -> Toy:
    """Objects and detections on both sides of the limits 32^2 and 96^2, and right at them."""
    maker = Maker("areas", range(10, 20), [1, 2])
    for image in range(10, 20):
        scattered(maker, image, 1, 3, 64, least=26, most=38)
        scattered(maker, image, 2, 2, 64, least=90, most=102)
        scattered(maker, image, 1, 1, 64, least=2, most=8)
    for image, side in ((10, 32), (11, 96), (12, 31.75), (13, 96.25)):
        maker.object(image, 1, (4, 6, side, side))
        maker.detect(image, 1, (4, 6, side, side), 50 / 64)
        maker.detect(image, 1, (5, 6, side, side), 50 / 64)
    maker.object(14, 2, (20, 10, 32, 32))
    maker.detect(14, 2, (20, 10, 32, 36), 64 / 64)  # medium, of a small one at the limit
    maker.detect(14, 2, (20, 10, 32, 28), 63 / 64)
    return maker.done()


def many() -> Toy:
    """More than 100 detections of a class in an image, and right ones among those after the hundredth."""
    maker = Maker("many", [1, 2], [1, 2])
    for image, number in ((1, 150), (2, 99)):
        for i in range(12):
            box = maker.box(10, 50)
            maker.object(image, 1, box)
            maker.detect(image, 1, maker.near(box, 0.125), (64 - 5 * i) / 64 if i % 2 else 1 / 1024)
        for _ in range(number):
            maker.detect(image, 1, maker.box(10, 60), maker.number(1, 40, 1) / 64)
        scattered(maker, image, 2, 3, 64)
        for _ in range(number - 20):
            maker.detect(image, 2, maker.box(10, 60), maker.number(1, 3, 1) / 64)
    return maker.done()


def absent() -> Toy:
    """Images without objects, without detections, without both; classes without either; an object twice."""
    maker = Maker("absent", [1, 2, 3, 4, 5], [1, 18, 44, 77])
    scattered(maker, 1, 1, 4, 8)
    for category in (1, 18, 44):
        maker.detect(2, category, maker.box(), 6 / 64)  # no object in the image, and of 18 none at all
    maker.object(3, 77, maker.box())  # never found
    maker.object(3, 1, (10, 10, 50, 50))
    maker.object(5, 44, (10, 10, 50, 50))
    maker.object(5, 44, (10, 10, 50, 50))
    for score in (5, 5, 4):
        maker.detect(5, 44, (10, 10, 50, 50), score / 64)
    return maker.done()


def silent() -> Toy:
    """Nothing is found."""
    maker = Maker("silent", [1, 2], [1, 2])
    maker.object(1, 1, maker.box())
    return maker.done()


TOYS = [ties(), crowds(), areas(), many(), absent(), silent()]
