import jax
import numpy as np
import pytest
from PIL import Image

from lape_jax.augment import autoaugment, operations
from lape_jax.augment.autoaugment import SUB_POLICIES, arguments
from lape_jax.augment.operations import IDENTITY, NAMES, Drawn
from lape_jax.augment.warp import BICUBIC, NEAREST
from tests.augment.samples import assert_frequencies, images
from tests.quick import jit


@pytest.fixture(scope="module")
def drawn():
    return Drawn(*map(np.asarray, jit(jax.vmap(autoaugment.draw))(jax.random.split(jax.random.key(5), 40_000))))


def test_there_are_25_pairs():
    assert [len(pair) for pair in SUB_POLICIES] == [2] * 25
    assert all(
        name in NAMES and 0 <= p <= 1 and magnitude in range(10) for pair in SUB_POLICIES for name, p, magnitude in pair
    )
    # sums of the paper's table, so that a slip of a digit shows
    assert sum(p for pair in SUB_POLICIES for _, p, _ in pair) == pytest.approx(26.5)
    assert sum(magnitude for pair in SUB_POLICIES for *_, magnitude in pair) == 267


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("shear_y", 9, (-0.3, 0.3)),
        ("translate_x", 9, (-150 / 331, 150 / 331)),
        ("translate_y", 3, (-50 / 331, 50 / 331)),
        ("rotate", 2, (20 / 3, 20 / 3)),
        ("color", 0, (1, 1)),
        ("brightness", 6, (0.4, 1.6)),
        ("posterize", 7, (5, 5)),
        ("solarize", 9, (0, 0)),
        ("solarize", 2, (256 * 7 / 9, 256 * 7 / 9)),
        ("invert", 7, (0, 0)),
    ],
)
def test_arguments(name, magnitude, expected):
    assert arguments(name, magnitude) == pytest.approx(expected)


@pytest.mark.parametrize("slot", [0, 1])
def test_operations_are_drawn_as_often_as_the_pairs_say(drawn, slot):
    expected = np.zeros(len(NAMES))
    for pair in SUB_POLICIES:
        name, probability, _ = pair[slot]
        expected[NAMES.index(name)] += probability
        expected[IDENTITY] += 1 - probability
    assert_frequencies(drawn.operation[:, slot], expected)


def test_the_operations_of_a_pair_come_together(drawn):
    found = {tuple(pair) for pair in drawn.operation if IDENTITY not in pair}
    assert found == {tuple(NAMES.index(name) for name, *_ in pair) for pair in SUB_POLICIES if pair[1][1] > 0}


def test_signs_are_even_but_for_rotations(drawn):
    def of(name):
        return drawn.argument[drawn.operation == NAMES.index(name)]

    np.testing.assert_allclose(of("rotate"), 20 / 3, rtol=1e-6)
    for name in ("translate_y", "shear_y"):
        assert_frequencies(of(name) > 0, [1, 1])
    assert_frequencies(of("sharpness") > 1, [1, 1])
    assert set(np.round(of("sharpness").astype(float), 4)) == {0.1, 0.4, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.6, 1.9}


def test_methods(drawn):
    geometric = {name: set(drawn.method[drawn.operation == NAMES.index(name)]) for name in operations.GEOMETRIC}
    assert geometric["shear_y"] == {BICUBIC}
    assert geometric["rotate"] == geometric["translate_x"] == geometric["translate_y"] == {NEAREST}


def test_a_rotation_and_a_translation_equal_pillow():
    image, fill = images()[0], (autoaugment.FILL,) * 3
    drawn = Drawn(
        np.asarray([NAMES.index("rotate"), NAMES.index("translate_x")]),
        np.float32([20 / 3, -150 / 331]),
        np.asarray([NEAREST, NEAREST]),
    )
    found = jit(lambda image: operations.apply(image, drawn, fill))(image)
    expected = Image.fromarray(image).rotate(20 / 3, fillcolor=fill)
    matrix = (1, 0, -150 / 331 * image.shape[1], 0, 1, 0)
    expected = expected.transform(expected.size, Image.Transform.AFFINE, matrix, fillcolor=fill)
    np.testing.assert_array_equal(found, np.asarray(expected))
