"""A small data set in COCO's format, to be written to files and spoilt."""

import copy
import json

import numpy as np
from PIL import Image

# Two images of 40 x 60 and 64 x 48 pixels (height x width); categories 7 "cat" and 3 "dog", out of order.
CONTENT = {
    "images": [
        {"id": 20, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 10, "file_name": "b.png", "height": 64, "width": 48},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {
            "id": 1, "image_id": 20, "category_id": 7, "iscrowd": 0, "area": 200.0, "bbox": [10, 5, 20, 10],
            "segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]],
        },
        {
            "id": 2, "image_id": 20, "category_id": 3, "iscrowd": 0, "area": 6.0, "bbox": [40.5, 20, 2, 3],
            "segmentation": {"size": [40, 60], "counts": [40 * 41 + 20, 3, 37, 3, 40 * 60 - 40 * 41 - 63]},
        },
        {
            "id": 3, "image_id": 10, "category_id": 3, "iscrowd": 1, "area": 64.0, "bbox": [0, 0, 1, 64],
            "segmentation": {"size": [64, 48], "counts": [0, 64, 64 * 47]},
        },
        {
            "id": 4, "image_id": 10, "category_id": 3, "iscrowd": 0, "area": 100.0, "bbox": [4, 30, 20, 5],
            "segmentation": [[4, 30, 24, 30, 24, 35], [4, 30, 24, 35, 4, 35]],
        },
    ],
}  # fmt: skip


def content():
    return copy.deepcopy(CONTENT)


def write(root, found, name="train.json", images=True):
    """The file of annotations, and noise as images."""
    path = root / name
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    rng = np.random.default_rng(0)
    for image in CONTENT["images"] if images else ():
        Image.fromarray(rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)).save(
            root / image["file_name"]
        )
    return str(path)
