"""How near the targets of the mask head, made from compact masks, come to those made from the bitmaps themselves.

    python benchmarks/detect_masks.py DIR [--split=val2017] [--images=1000] [--rois=4] [--seed=0]

DIR is laid out as COCO is: annotations/instances_{split}.json; images are not read. Each is taken at a size of
multi-scale training (a short side of 480 .. 800, a long one of up to 1333, cut to 1024), each object that is not a
crowd with --rois boxes: its own, and shifted and stretched ones whose IoU with it is at least 1/2. A row is a form of
masks: bits as in `lape_jax.tasks.detect.masks`, with more or fewer cells, or the mean of each cell's pixels in a byte,
interpolated. The IoU of two targets of 28 x 28 bits is 1 if both are empty.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

sys.path.insert(0, str(Path(__file__).parents[1]))

from lape_jax.tasks.detect import masks

SIZES = ((0, 56), (56, 110), (110, 224), (224, 1025))  # pixels: the longer side of a box


def drawn(annotation, height, width):
    """The bitmap of an annotation, at the size of its image."""
    shapes = annotation["segmentation"]
    if isinstance(shapes, dict):
        rle = coco.frPyObjects(shapes, height, width) if isinstance(shapes["counts"], list) else shapes
    else:
        rle = coco.merge(coco.frPyObjects(shapes, height, width))
    return coco.decode(rle)


def axis(low, high, pixels):
    """RoIAlign along one axis: (28, pixels), how much each pixel counts in each bin."""
    step = (high - low) / masks.TARGET
    count = int(np.ceil(step))
    at = low - 0.5 + step * (np.arange(masks.TARGET)[:, None] + (np.arange(count) + 0.5) / max(count, 1))
    at = np.clip(at, 0, pixels - 1)
    before = np.floor(at).astype(int)
    shares = np.zeros((masks.TARGET, pixels))
    bins = np.broadcast_to(np.arange(masks.TARGET)[:, None], at.shape)
    np.add.at(shares, (bins, before), (1 - at + before) / max(count, 1))
    np.add.at(shares, (bins, np.minimum(before + 1, pixels - 1)), (at - before) / max(count, 1))
    return shares


def target(bitmap, roi):
    height, width = bitmap.shape
    x1, y1, x2, y2 = np.clip(roi, 0, [width, height, width, height])
    rows, columns = slice(max(int(y1) - 1, 0), int(y2) + 2), slice(max(int(x1) - 1, 0), int(x2) + 2)  # the others are 0
    seen = bitmap[rows, columns].astype(np.float32)
    return axis(y1, y2, height)[:, rows] @ seen @ axis(x1, x2, width)[:, columns].T >= 0.5


def overlap(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 1.0


def bits(side, bitmap, box):
    return masks.expand(masks.compact(bitmap, box, side), box, *bitmap.shape)


def grey(side, bitmap, box):
    """A byte for each cell of the whole pixels around the box, interpolated."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    window = 255 * bitmap[top:bottom, left:right]
    size = min(window.shape[1], side), min(window.shape[0], side)
    cells = cv2.resize(window, size, interpolation=cv2.INTER_AREA)
    found = np.zeros(bitmap.shape)
    found[top:bottom, left:right] = cv2.resize(cells / 255, window.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return found


FORMS = {f"{side} x {side} bits": (side**2 // 8, functools.partial(bits, side)) for side in (28, 56, 112, 224)} | {
    f"{side} x {side} bytes": (side**2, functools.partial(grey, side)) for side in (28, 56)
}


def box_iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    return sides.prod() / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod())


def around(box, count, rng):
    """The box, and count - 1 others with an IoU of at least 1/2 with it."""
    yield box
    while count > 1:
        centre, side = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        centre, half = centre + rng.normal(0, 0.15, 2) * side, side * np.exp(rng.normal(0, 0.25, 2)) / 2
        roi = np.concatenate([centre - half, centre + half])
        if box_iou(roi, box) >= 0.5:
            yield roi
            count -= 1


def objects(images, annotations, rng):
    """(bitmap, box) of each object, as in training."""
    for image in images:
        height, width = image["height"], image["width"]
        short = rng.choice(np.arange(480, 801, 32))
        scale = min(1333 / max(height, width), short / min(height, width))
        size = int(height * scale + 0.5), int(width * scale + 0.5)
        top, left = (rng.integers(max(side - 1024, 0) + 1) for side in size)
        for one in annotations.get(image["id"], ()):
            x, y, w, h = one["bbox"]
            box = np.float32([x, y, x + w, y + h]) * np.float32([size[1] / width, size[0] / height] * 2)
            bitmap = cv2.resize(drawn(one, height, width), size[::-1], interpolation=cv2.INTER_NEAREST)
            bitmap = bitmap[top : top + 1024, left : left + 1024]
            limits = [*bitmap.shape[::-1], *bitmap.shape[::-1]]
            box = np.clip(box - np.float32([left, top, left, top]), 0, np.float32(limits))
            if (box[2:] > box[:2]).all():
                yield bitmap, box


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rois", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    data = json.loads((args.dir / f"annotations/instances_{args.split}.json").read_text())
    by_image = {}
    for one in data["annotations"]:
        if not one["iscrowd"]:
            by_image.setdefault(one["image_id"], []).append(one)
    sides, ious, seconds = [], {name: [] for name in FORMS}, dict.fromkeys(FORMS, 0.0)
    for bitmap, box in objects(data["images"][: args.images], by_image, rng):
        rois = list(around(box, args.rois, rng))
        exact = [target(bitmap, roi) for roi in rois]
        sides += [(box[2:] - box[:2]).max()] * len(rois)
        for name, (_, form) in FORMS.items():
            start = time.perf_counter()
            seen = form(bitmap, box)
            seconds[name] += time.perf_counter() - start
            ious[name] += [overlap(target(seen, roi), known) for roi, known in zip(rois, exact, strict=True)]
    sides = np.array(sides)
    groups = [(sides >= low) & (sides < high) for low, high in SIZES]
    shown = " | ".join(
        f"{low} to {high - 1} px ({group.sum()})" for (low, high), group in zip(SIZES, groups, strict=True)
    )
    print(f"| form | bytes | mean IoU ({len(sides)}) | 1% lowest | {shown} | ms there and back |")
    print("|---" * (5 + len(SIZES)) + "|")
    for name, (size, _) in FORMS.items():
        found = np.array(ious[name])
        parts = " | ".join(f"{found[group].mean():.4f}" for group in groups)
        spent = 1e3 * seconds[name] / (len(found) / args.rois)
        print(f"| {name} | {size} | {found.mean():.4f} | {np.quantile(found, 0.01):.3f} | {parts} | {spent:.2f} |")


if __name__ == "__main__":
    main()
