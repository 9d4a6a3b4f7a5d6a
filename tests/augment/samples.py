"""Images to compare with Pillow on, and a chi-square test of draws."""

import numpy as np
import scipy.stats
from PIL import Image
from sklearn.datasets import load_sample_images


def images() -> np.ndarray:
    """uint8 (n, 53, 80, 3): two photographs first, then noise and the cases in which an operation has nothing to do."""
    photos = [photo[:424:8, ::8] for photo in load_sample_images().images]
    shape, random = photos[0].shape, np.random.default_rng(0)
    one_bright = np.full(shape, 30, np.uint8)
    one_bright[20, 30] = 200, 31, 30
    ramp = np.resize(np.arange(256, dtype=np.uint8), shape)
    return np.stack(
        [
            *photos,
            random.integers(0, 256, shape, np.uint8),
            ramp,
            photos[0] // 3 + 40,  # a narrow range
            random.integers(100, 103, shape, np.uint8),
            random.choice(np.asarray([0, 255], np.uint8), shape),
            one_bright,
            np.full(shape, 77, np.uint8),
            np.zeros(shape, np.uint8),
        ]
    )


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def assert_frequencies(draws, probabilities):
    """Chi-square at 1e-4 (all draws are seeded): draws are 0..n-1 with these probabilities, 0 meaning never."""
    counts = np.bincount(np.asarray(draws).ravel(), minlength=len(probabilities))
    expected = np.asarray(probabilities) / np.sum(probabilities) * counts.sum()
    assert len(counts) == len(probabilities)
    assert not counts[expected == 0].any()
    possible = expected > 0
    assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-4, (counts, expected)
