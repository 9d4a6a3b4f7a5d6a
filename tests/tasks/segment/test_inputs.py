"""What happens to training images to segment on the device, and what a config says of them."""

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax.tasks.config import base
from lape_jax.tasks.segment import inputs
from lape_jax.tasks.segment.scene import IGNORE, PADDING

BATCH, SIZE = 2, 8


def config():
    found = base()
    found.task, found.data.image_size, found.augment.flip = "segment", SIZE, True
    found.data.mean, found.data.std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    found.segment.scale = (64, 48)
    return found


def test_images_are_normalised_and_zero_where_there_is_no_image():
    image = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    label = np.zeros((BATCH, SIZE, SIZE), np.int32)
    label[:, 5:], label[0, 0, 0] = PADDING, IGNORE
    batch = jax.tree.map(jnp.asarray, {"image": image, "label": label, "mask": np.ones(BATCH, np.float32)})
    found = inputs.normalising(config())(batch, jax.random.key(0), False)
    expected = (image / 255 - np.array((0.5, 0.4, 0.3))) / np.array((0.25, 0.2, 0.1))
    np.testing.assert_allclose(found["image"][:, :5], expected[:, :5], atol=1e-5)
    assert not np.any(found["image"][:, 5:])
    assert found["label"] is batch["label"]


def test_describe():
    line = "resize into 64 x 48 times 0.5 to 2, crop of 8 pixels, flip, photometric distortion"
    assert inputs.describe(config()) == line
