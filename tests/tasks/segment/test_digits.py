import numpy as np
import pytest

from lape_jax.data import sources
from lape_jax.data.example import Source
from lape_jax.tasks.segment.digits import CELL, COLUMNS, INK, ROWS, DigitScenes
from lape_jax.tasks.segment.masks import decode_scene


@pytest.fixture(scope="module")
def splits():
    return {split: DigitScenes(split) for split in ("train", "val")}


def cells(array):
    """The twelve parts of an image or a map, row by row."""
    return [
        array[top : top + CELL, left : left + CELL]
        for top in range(0, ROWS * CELL, CELL)
        for left in range(0, COLUMNS * CELL, CELL)
    ]


def test_shapes_and_classes(splits):
    assert {split: len(source) for split, source in splits.items()} == {"train": 119, "val": 29}
    for split, source in splits.items():
        assert isinstance(source, Source)
        assert source.classes == ("paper", *"0123456789")
        for index in (0, len(source) - 1):
            scene = source[index]
            assert (scene.image.shape, scene.image.dtype) == ((48, 64, 3), np.uint8)
            assert (scene.mask.shape, scene.mask.dtype) == ((48, 64), np.uint8)
            assert (scene.first, scene.name) == (0, f"digits {split}[{index}]")
            pixels, labels = decode_scene(scene, 3, len(source.classes))
            np.testing.assert_array_equal(pixels, scene.image)
            np.testing.assert_array_equal(labels, scene.mask)
    seen = np.unique([splits["val"][index].mask for index in range(29)])
    assert seen.tolist() == [*range(11)]


def test_they_are_the_same_every_time(splits):
    for split, source in splits.items():
        again = DigitScenes(split)
        for index in (3, 0, 3):
            np.testing.assert_array_equal(source[index].image, again[index].image)
            np.testing.assert_array_equal(source[index].mask, again[index].mask)
        assert not np.array_equal(source[0].image, source[1].image)


def test_the_map_agrees_with_the_ink(splits):
    for index in range(0, 119, 7):
        scene = splits["train"][index]
        np.testing.assert_array_equal(scene.mask > 0, scene.image[..., 1] >= INK)
        assert (scene.image == scene.image[..., :1]).all()
        for cell in cells(scene.mask):
            assert len(np.unique(cell[cell > 0])) == 1  # the ink of one digit
            np.testing.assert_array_equal(cell[::2, ::2].repeat(2, 0).repeat(2, 1), cell)


def test_every_digit_is_shown_once_under_its_own_class(splits):
    shown = {}
    for split, source in splits.items():
        digits = sources.digits(split)
        labels = {image.tobytes(): label for image, label in zip(digits.images, digits.labels, strict=True)}
        assert len(labels) == len(digits)  # no two are alike, so pixels tell which one it is
        shown[split] = []
        for scene in map(source.__getitem__, range(len(source))):
            for image, mask in zip(cells(scene.image[..., 0]), cells(scene.mask), strict=True):
                shown[split].append(np.ascontiguousarray(image[::2, ::2]).tobytes())
                assert mask.max() == 1 + labels[shown[split][-1]]
    for split, digits in shown.items():
        assert len(set(digits)) == len(digits) == {"train": 119, "val": 29}[split] * 12
    assert not set(shown["train"]) & set(shown["val"])
