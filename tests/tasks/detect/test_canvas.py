"""Few canvases for many sizes."""

import numpy as np

from lape_jax.tasks.detect import canvas


def test_each_size_fits_its_canvas_and_there_are_few():
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 1334, (120, 2))]
    for most in (1, 2, 3, 7):
        chosen = canvas.choose(sizes, most)
        assert len(set(chosen.values())) <= most
        for size, own in chosen.items():
            assert own[0] >= size[0]
            assert own[1] >= size[1]
            assert own[0] % 32 == own[1] % 32 == 0
    each = canvas.choose(sizes, 0)
    assert all(own == canvas.padded(size) for size, own in each.items())


def test_sizes_of_coco():
    """As 800 x 1333 lets its most common images be: three canvases, of which one each for most of the images."""
    sizes = [(800, 1067)] * 1700 + [(1067, 800)] * 500 + [(800, 1199)] * 1200 + [(1199, 800)] * 400 + [(800, 800)] * 100
    chosen = canvas.choose(sizes, 3)
    assert chosen[800, 1067] == (800, 1088)
    assert chosen[800, 1199] == (800, 1216)
    assert chosen[1067, 800] == chosen[1199, 800] == (1216, 800)


def test_one_size_is_one_canvas():
    assert canvas.choose([(96, 126)] * 9, 3) == {(96, 126): (96, 128)}
