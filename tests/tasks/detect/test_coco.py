"""COCO's format: what is read of it, and what is said of files that are wrong."""

import json
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps, coco
from tests import quick
from tests.tasks.detect import samples


def read(tmp_path, found):
    return coco.read(samples.write(tmp_path, found, images=False))


def test_what_is_read(tmp_path):
    found = read(tmp_path, samples.content())
    assert list(found.ids.items()) == [("dog", 3), ("cat", 7)]  # by id, whatever the order in the file
    assert found.left == ()
    a, b = found.entries
    assert (a.number, a.file, a.objects.height, a.objects.width) == (20, "a.png", 40, 60)
    assert a.objects.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(a.objects.boxes, [[10, 5, 20, 10], [40.5, 20, 2, 3]])
    np.testing.assert_array_equal(a.objects.corners, [[10, 5, 30, 15], [40.5, 20, 42.5, 23]])
    assert (b.objects.crowd.tolist(), b.objects.learned.tolist()) == ([True, False], [False, True])
    assert b.objects.areas.tolist() == [64, 100]
    masks = [bitmaps.bitmap(mask, 40, 60) for mask in a.objects.masks]
    assert (masks[0].sum(), masks[0][5:15, 10:30].all()) == (200, True)
    assert (masks[1].sum(), masks[1][20:23, 41:43].all()) == (6, True)
    both = bitmaps.bitmap(b.objects.masks[1], 64, 48)  # two triangles are one square
    assert (both.sum(), both[30:35, 4:24].all()) == (100, True)


def test_classes_without_the_rest(tmp_path):
    path = samples.write(tmp_path, samples.content(), images=False)
    assert coco.class_names(path) == ("dog", "cat")
    tricky = samples.content() | {"info": {"categories": [1, 2]}}
    assert coco.class_names(samples.write(tmp_path, tricky, images=False)) == ("dog", "cat")


def test_compressed_runs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 90, 2)
        pixels = (rng.random((height, width)) < rng.random() ** 3).astype(np.uint8)
        stored = coco_mask.encode(np.asfortranarray(pixels))
        np.testing.assert_array_equal(bitmaps.bitmap(stored, int(height), int(width)), pixels)
    assert [bitmaps.runs(text) for text in (b"", b"\xff", b"abc", b"o", b"PPPPPPPPPP0")] == [None] * 5


def annotation(**changes):
    """The file whose first annotation has these values."""
    found = samples.content()
    found["annotations"][0] |= changes
    return found


def image(**changes):
    found = samples.content()
    found["images"][0] |= changes
    return found


def category(**changes):
    found = samples.content()
    found["categories"][0] |= changes
    return found


def rle(**changes):
    return annotation(segmentation={"size": [40, 60], "counts": [2400], **changes})


WRONG = {
    "nothing": ("", "is not JSON"),
    "not JSON": ("{'images': []}", "is not JSON"),
    "cut off": (json.dumps(samples.CONTENT)[:-30], "is not JSON"),
    "a list": ([1], "holds a JSON list"),
    "no images": ({"annotations": [], "categories": []}, "has no list 'images'.*it has annotations, categories"),
    "images is an object": (samples.content() | {"images": {}}, "no list 'images'.*JSON dict"),
    "an image is a number": (samples.content() | {"images": [1]}, r"images\[0\] is 1, and no object"),
    "empty images": (samples.content() | {"images": []}, "'images' is an empty list"),
    "empty categories": (samples.content() | {"categories": []}, "'categories' is an empty list"),
    "an id of an image twice": (image(id=10), "two images have the id 10, a.png and b.png"),
    "an image without height": (
        image(height=None),
        r"images\[0\]: 'height' must be a whole number of at least 1.*null",
    ),
    "an image without size": (image(width=0), "'width' must be a whole number of at least 1, and is 0"),
    "a text as id": (image(id="20"), "'id' must be a whole number, and is \"20\""),
    "no file name": (image(file_name=""), "'file_name' must be a text"),
    "an id of a category twice": (category(id=3), "two categories have the id 3"),
    "a name twice": (category(name="dog"), "two categories are called 'dog'"),
    "no name": (category(name=5), "'name' must be a text, and is 5"),
    "an id of an annotation twice": (annotation(id=2), "two annotations have the id 2"),
    "no box": (annotation(bbox=None), "annotation 1 of a.png: 'bbox' must be four finite numbers.*null"),
    "a box of three": (annotation(bbox=[1, 2, 3]), r"'bbox' must be four finite numbers.*\[1, 2, 3\]"),
    "a box of texts": (annotation(bbox=["1", 2, 3, 4]), "'bbox' must be four finite numbers"),
    "NaN in a box": (annotation(bbox=[float("nan"), 2, 3, 4]), "'bbox' must be four finite numbers.*NaN"),
    "an infinite box": (annotation(bbox=[1, 2, float("inf"), 4]), "'bbox' must be four finite numbers"),
    "NaN as area": (annotation(area=float("nan")), "'area' must be a finite number, and is NaN"),
    "no mask": (annotation(segmentation=[]), r"annotation 1 of a.png has no mask: 'segmentation' is \[\]"),
    "a mask of two corners": (annotation(segmentation=[[1, 2, 3, 4]]), "has no mask"),
    "a text as mask": (annotation(segmentation="x"), "must be a list of polygons, or RLE"),
    "odd numbers": (annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "a polygon must be a list"),
    "a polygon of texts": (annotation(segmentation=[["a", 2, 3, 4, 5, 6]]), "a polygon must be a list"),
    "a polygon far away": (annotation(segmentation=[[1, 2, 3, 1e9, 5, 6]]), "about the size of the image"),
    "NaN in a polygon": (annotation(segmentation=[[1, 2, 3, float("nan"), 5, 6]]), "a polygon must be a list"),
    "RLE of another size": (rle(size=[60, 40]), r"its RLE is of the size \[60, 40\], but its image is \[40, 60\]"),
    "RLE of too few pixels": (rle(counts=[2399]), "do not add up to 40 x 60"),
    "RLE with a negative run": (rle(counts=[2401, -1]), "do not add up to 40 x 60"),
    "RLE that is garbage": (rle(counts="~~~"), "do not add up to 40 x 60"),
    "a crowd of words": (annotation(iscrowd="no"), "'iscrowd' must be a whole number of at least 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line(name, tmp_path):
    found, words = WRONG[name]
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, found)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "train.json" in str(caught.value)


LEFT = {
    "unknown category": ({"category_id": 5}, "have a category that is not in the file"),
    "unknown image": ({"image_id": 5}, "belong to an image that is not in the file"),
    "outside": ({"bbox": [60, 5, 20, 10]}, "lie outside of their image, or have no area"),
    "above": ({"bbox": [10, -20, 20, 20]}, "lie outside of their image, or have no area"),
    "inside out": ({"bbox": [10, 5, -20, 10]}, "lie outside of their image, or have no area"),
    "thin": ({"bbox": [10, 5, 0.5, 10]}, "are less than a pixel wide or high"),
    "no area": ({"area": 0}, "have the area 0"),
    "ignored": ({"ignore": 1}, "say 'ignore'"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_out_is_counted_and_named(name, tmp_path):
    changes, words = LEFT[name]
    found = read(tmp_path, annotation(**changes))
    ((what, why, count, first),) = found.left
    assert (what, why, count) == ("annotations", words, 1)
    assert first.startswith("annotation 1 of ")
    assert sum(entry.objects.learned.sum() for entry in found.entries) == 2


def test_what_may_be_missing(tmp_path):
    found = samples.content()
    for item in found["annotations"]:
        del item["area"]
    del found["annotations"][0]["iscrowd"]
    a, b = read(tmp_path, found).entries
    assert (a.objects.areas.tolist(), b.objects.areas.tolist()) == ([200, 6], [64, 100])


def test_many_objects(tmp_path):
    found = samples.content()
    found["annotations"] = [{**found["annotations"][0], "id": i} for i in range(2_000)]
    assert len(read(tmp_path, found).entries[0].objects) == 2_000


JUNK = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    [],
    [[]],
    {},
    {"size": [40, 60], "counts": "0"},
    [[1, 2]],
)


@pytest.mark.parametrize("seed", quick.first(40, range(400)))
def test_whatever_stands_somewhere_it_is_read_or_refused(seed, tmp_path):
    """Of 400 files, each with something else in two places."""
    draw, found = random.Random(seed), samples.content()
    for _ in range(2):
        item = draw.choice(found[draw.choice(["images", "annotations", "categories"])])
        key = draw.choice([*item])
        item[key] = draw.choice(JUNK)
        if draw.random() < 0.2:
            del item[key]
    try:
        entries = read(tmp_path, found).entries
    except UserError as error:
        said, entries = str(error), ()
        assert "\n" not in said
    for entry in entries:
        height, width = entry.objects.height, entry.objects.width
        for row in np.flatnonzero(entry.objects.learned):
            assert bitmaps.bitmap(entry.objects.masks[row], height, width).shape == (height, width)
