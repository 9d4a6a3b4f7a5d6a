"""RoIAlign against a loop over samples, for regions of every size and place; which map a region is looked at in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.detection import roi_align as module
from lape_jax.nn.detection import roi_gathers
from lape_jax.nn.detection.roi_align import by_products, pooled, roi_align
from lape_jax.nn.detection.roi_shares import level
from tests import quick
from tests.quick import jit
from tests.reference.cases import uniform

ROWS, COLUMNS, SCALE, OUT = 9, 14, 0.25, 3
ROIS = {
    "usual": (8.3, 5.1, 30.7, 27.9),
    "whole": (0, 0, 56, 36),
    "tiny": (20.11, 13.3, 20.1103, 13.3002),
    "one pixel": (4, 4, 8, 8),
    "wide": (1.7, 17.0, 55.1, 17.9),
    "high": (33.0, 0.4, 33.3, 35.6),
    "huge": (-3000.0, -1000.3, 5000.1, 4000.9),
    "huge and flat": (-3000.0, 20.0, 5000.0, 20.5),
    "partly outside": (-9.7, -6.2, 11.4, 7.3),
    "beyond the end": (50.0, 30.3, 70.1, 60.2),
    "outside": (200, 300, 260, 340),
    "just outside": (58.1, 2.0, 66.0, 20.0),
    "no width": (10, 10, 10, 20),
    "no height": (10, 10, 20, 10),
    "nothing": (0, 0, 0, 0),
    "inside out": (20, 20, 10, 10),
}


def by_hand(map_, roi, scale, out):
    """One sample at a time, as it is defined."""
    rows, columns, channels = map_.shape
    x1, y1, x2, y2 = (value * scale - 0.5 for value in roi)
    found = np.zeros((out, out, channels))
    down, across = (max(math.ceil((high - low) / out), 0) for low, high in ((y1, y2), (x1, x2)))
    for i, j in np.ndindex(out, out):
        for m in range(down):
            for n in range(across):
                y = y1 + (i + (m + 0.5) / down) * (y2 - y1) / out
                x = x1 + (j + (n + 0.5) / across) * (x2 - x1) / out
                if -1 <= y <= rows and -1 <= x <= columns:
                    found[i, j] += between(map_, min(max(y, 0), rows - 1), min(max(x, 0), columns - 1))
    return found / max(down * across, 1)


def between(map_, y, x):
    top, left = math.floor(y), math.floor(x)
    below, right = min(top + 1, len(map_) - 1), min(left + 1, map_.shape[1] - 1)
    upper = (1 - (x - left)) * map_[top, left] + (x - left) * map_[top, right]
    lower = (1 - (x - left)) * map_[below, left] + (x - left) * map_[below, right]
    return (1 - (y - top)) * upper + (y - top) * lower


def by_fetching(maps, rois, scale, out):
    return roi_gathers.features([maps], rois, (round(1 / scale),), out)


each_form = pytest.mark.parametrize("form", [roi_align, by_fetching], ids=["products", "gathers"])


@each_form
def test_by_hand(form, monkeypatch):
    monkeypatch.setattr(module, "MULTIPLIED", 5 * OUT)  # which does not divide the regions
    monkeypatch.setattr(roi_gathers, "FETCHED", 5)
    map_, rois = uniform("map", (ROWS, COLUMNS, 2)), np.asarray(list(ROIS.values()), np.float64)
    with jax.enable_x64(True):
        given = jnp.asarray(map_)[None], jnp.asarray(rois)[None]
        found = np.asarray(jit(lambda maps, rois: form(maps, rois, SCALE, OUT))(*given))[0]
    for name, roi, value in zip(ROIS, rois, found, strict=True):
        # The largest has 667 x 417 samples in a bin: by hand, axis by axis.
        expected = by_hand(map_, roi, SCALE, OUT) if name != "huge" else by_axes(map_, roi)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12, err_msg=name)
        assert np.any(value) != (name in ("outside", "just outside", "no width", "no height", "nothing", "inside out"))


def by_axes(map_, roi):
    """The same of a separable sum: means along x of a map whose columns are taken one by one, and then along y."""
    x1, y1, x2, y2 = roi
    rows = np.stack([by_hand(row[None], (x1, 0, x2, 4 * OUT), SCALE, OUT)[0] for row in map_])  # ROWS, OUT, channels
    columns = [by_hand(rows[:, i : i + 1], (0, y1, 4 * OUT, y2), SCALE, OUT)[:, 0] for i in range(OUT)]
    return np.stack(columns, axis=1)


@each_form
@pytest.mark.parametrize("out", quick.first(1, [7, 14]))
def test_in_float32(form, out):
    map_ = uniform("map", (1, 40, 60, 2)).astype(np.float32)
    corner = 40 * np.abs(uniform("corner", (1, 30, 2)))
    rois = np.concatenate([corner, corner + 2 * np.exp(2 * uniform("side", (1, 30, 2)))], axis=-1).astype(np.float32)
    found = jit(lambda map_, rois: form(map_, rois, 1.0, out))(map_, rois)
    for roi, value in zip(rois[0], found[0], strict=True):
        np.testing.assert_allclose(value, by_hand(map_[0], roi.astype(np.float64), 1.0, out), rtol=0, atol=1e-4)


def test_gradients_are_of_the_map_alone():
    """It is linear in the map: the gradient is the transposed, however many regions there are at a time."""
    map_, rois = uniform("map", (2, ROWS, COLUMNS, 2)), np.asarray(list(ROIS.values()), np.float64)
    rois = np.stack([rois, rois[::-1]])
    g, direction = uniform("g", (2, len(ROIS), OUT, OUT, 2)), uniform("direction", map_.shape)

    def loss(map_, rois):
        return jnp.sum(roi_align(map_, rois, SCALE, OUT) * g)

    found = []
    with jax.enable_x64(True):
        given = jnp.asarray(map_), jnp.asarray(rois)
        for block in (module.MULTIPLIED, 5 * OUT):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "MULTIPLIED", block)
                found.append(jit(jax.grad(loss, argnums=(0, 1)))(*given))
        slope = jit(loss)(jnp.asarray(direction), given[1])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-13)
    assert np.sum(np.asarray(found[0][0]) * direction) == pytest.approx(float(slope), rel=1e-12)
    assert not found[0][1].any()


def test_levels_change_exactly_at_their_limits():
    sides = np.asarray([1, 111.99, 112, 223.99, 224, 447.9, 448, 3000], np.float32)
    rois = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    np.testing.assert_array_equal(level(jnp.asarray(rois), 4), [0, 0, 1, 1, 2, 2, 3, 3])
    rois = np.asarray([[0, 0, 0, 0], [5, 5, 1, 9], [0, 0, 56, 224], [0, 0, 1, 1e6]], np.float32)
    np.testing.assert_array_equal(level(jnp.asarray(rois), 4), [0, 0, 1, 3])


def test_each_region_is_looked_at_in_its_map():
    """The maps are constants, by which one sees which it was."""
    maps = [jnp.full((1, 64 // 2**i, 96 // 2**i, 1), 10.0**i) for i in range(4)]
    rois = jnp.asarray([[[9, 8, 60, 70], [0, 0, 112, 112], [3, 4, 240, 250], [0, 0, 2000, 2000], [0, 0, 0, 0]]])
    found = jit(lambda maps, rois: pooled(maps, rois.astype(jnp.float32), (4, 8, 16, 32), 7))(maps, rois)
    np.testing.assert_allclose(found[0, :, 0, 0, 0], [1, 10, 100, 1000, 0], rtol=1e-5)
    assert found.shape == (1, 5, 7, 7, 1)


@pytest.mark.slow
def test_both_ways_are_the_same():
    """Over four maps, with the gradient; this is what a TPU or GPU does beside what a CPU does."""
    maps = [uniform(f"map {i}", (2, 48 // 2**i, 64 // 2**i, 2)) for i in range(4)]
    corner, side = 100 * uniform("corner", (2, 40, 2)) + 80, np.exp(4 + 2 * uniform("side", (2, 40, 2)))
    rois, g = np.concatenate([corner, corner + side], axis=-1), uniform("g", (2, 40, 7, 7, 2))
    with jax.enable_x64(True):
        given = [jnp.asarray(map_) for map_ in maps], jnp.asarray(rois)
        assert set(np.unique(level(given[1], 4))) == {0, 1, 2, 3}

        def of(form):
            run = jax.vjp(lambda maps, rois: form(maps, rois, (4, 8, 16, 32), 7), *given)
            return run[0], run[1](jnp.asarray(g))

        found, expected = jit(lambda: [of(form) for form in (pooled, by_products)])()
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-12)
    assert not found[1][1].any()


def test_bfloat16_is_near_float32():
    map_ = jnp.asarray(uniform("map", (1, ROWS, COLUMNS, 2)), jnp.float32)
    rois = jnp.asarray([ROIS["usual"], ROIS["whole"], ROIS["wide"]], jnp.float32)[None]
    run = jit(lambda map_: roi_align(map_, rois, SCALE, OUT))
    exact, near = run(map_), run(map_.astype(jnp.bfloat16))
    assert near.dtype == jnp.bfloat16
    np.testing.assert_allclose(near, exact, rtol=0, atol=0.02)
