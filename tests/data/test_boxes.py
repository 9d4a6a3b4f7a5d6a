import numpy as np
import pytest

from lape_jax.data.boxes import Box, align, random_box


def test_random_boxes_have_the_areas_and_ratios_they_should():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(300, 300, rng, (0.2, 0.4), (0.5, 2.0)) for _ in range(2000)])
    top, left, h, w = boxes.T
    area, log_ratio = h * w / 300**2, np.log(w / h)
    assert area.min() > 0.19
    assert area.max() < 0.41
    assert abs(area.mean() - 0.3) < 0.005
    assert abs(log_ratio.mean()) < 0.04  # uniform in +-log 2
    assert abs(log_ratio.std() - np.log(2) / np.sqrt(3)) < 0.02
    assert (boxes >= 0).all()
    assert (top + h).max() == 300
    assert (left + w).max() == 300
    assert abs((top / (300 - h)).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("box", "step", "expected"),
    [
        (Box(3, 5, 10, 20), 1, Box(3, 5, 10, 20)),
        (Box(1, 3, 10, 10), 4, Box(0, 4, 12, 8)),  # edges 1, 3, 11, 13
        (Box(60, 60, 39, 41), 8, Box(64, 64, 32, 37)),  # edges 60, 60, 99, 101: the last one is the image's
    ],
)
def test_aligned_boxes(box, step, expected):
    assert align(box, step, 99, 101) == expected
    assert (box.bottom, box.right) == (box.top + box.height, box.left + box.width)
