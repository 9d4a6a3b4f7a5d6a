import pytest

from lape_jax.tasks.segment import values


@pytest.mark.parametrize(
    ("found", "first", "classes", "hint"),
    [
        ([0, 255], 0, 2, "255 stands for no class: if it means one"),
        ([255], 0, 2, "255 stands for no class"),
        ([0, 1, 255], 1, 3, "255 stands for no class"),
        ([1, 2], 0, 2, "it seems to count its classes from 1: subtract 1"),
        ([3], 0, 3, "it seems to count its classes from 1"),
        ([2, 3], 1, 2, "it seems to count its classes from 2"),
        ([1, 2, 255], 0, 3, "if the classes are counted from 1, subtract 1"),
        ([0, 128], 0, 2, "its values are 0 and 128: replace each by the number of its class, 0 to 1"),
        ([0, 127, 254], 0, 3, "its values are 0, 127 and 254"),
        ([0, 1, 2], 0, 2, "if 0 is what belongs to no class, as the background, it needs a name"),
        ([0, 3], 0, 3, "if 0 is what belongs to no class"),
        ([0, 4], 0, 3, "its values are 0 and 4"),
        ([0, 1], 0, 2, ""),
        ([0, 1, 255], 0, 2, ""),
        ([0, 2], 0, 3, ""),
        (range(250), 0, 2, ""),
    ],
)
def test_likely_causes(found, first, classes, hint):
    said = values.hint(found, first, classes)
    assert said.startswith(f"; {hint}") if hint else said == ""


def test_classes_that_are_missing():
    assert values.missing([0, 2, 255], 0, 4) == [1, 3]
    assert values.missing([0, 2], 1, 3) == [0, 2]
