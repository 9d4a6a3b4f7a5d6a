"""A model that sees at once what there is, and images for it: one block of colour in each."""

import jax.numpy as jnp
import numpy as np

from lape_jax.tasks.config import base
from lape_jax.tasks.detect.photo import Objects, Photo

SIZES = [(40, 64), (64, 40), (40, 64), (32, 32), (20, 64), (64, 40), (40, 50)]


class Seer:
    """Finds the one block of an image: its box, its class by the brightest channel, and a mask that is full."""

    num_classes = 3

    def apply(self, variables, images, train, sizes, scale):
        assert not train
        inside = images.max(axis=-1) > 0.5
        rows, columns = inside.any(axis=2), inside.any(axis=1)

        def ends(line):
            return jnp.argmax(line, axis=1), line.shape[1] - jnp.argmax(line[:, ::-1], axis=1)

        (y1, y2), (x1, x2) = ends(rows), ends(columns)
        boxes = jnp.stack([x1, y1, x2, y2], axis=1) / jnp.tile(scale[:, ::-1], 2)
        nothing = jnp.zeros_like(boxes)
        found = {
            "boxes": jnp.stack([boxes, nothing, boxes], axis=1),
            "scores": jnp.array([[0.9, 0.0, 0.4]] * len(images)) * variables["params"],
            "labels": jnp.stack([images.sum(axis=(1, 2)).argmax(axis=-1)] * 3, axis=1)
            .astype(jnp.int32)
            .at[:, 2]
            .set(0),
            "masks": jnp.ones((len(images), 3, 28, 28)),
            "valid": inside.any(axis=(1, 2))[:, None] & jnp.array([True, False, True]),
        }
        return found, {}


class Photos(list):
    classes = ("red", "green", "blue")


def photos():
    """A block of class i mod 3 in image i; the last has none."""
    found, rng = Photos(), np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        pixels, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
        y, x, h, w = (int(value) for value in rng.integers(4, 10, 4))
        count = int(index < len(SIZES) - 1)
        if count:
            pixels[y : y + h, x : x + w, index % 3] = 255
            mask[y : y + h, x : x + w] = 1
        objects = Objects(
            height,
            width,
            np.array([[x, y, w, h]] * count, np.float64).reshape(-1, 4),
            np.array([index % 3] * count, np.int32),
            crowd=np.zeros(count, bool),
            learned=np.ones(count, bool),
            areas=np.full(count, float(w * h)),
            masks=(mask,) * count,
        )
        found.append(Photo(lambda pixels=pixels: pixels, objects, f"image {index}", 100 - index))
    return found


def config(**detect):
    found = base()
    found.task, found.eval_batch_size = "detect", 2
    found.data.threads, found.data.mean, found.data.std = 2, (0.0,) * 3, (1.0,) * 3
    found.detect.update({"test_long": 128, "test_short": 80, "test_canvases": 3, **detect})
    return found
