"""Classes of data among those that were learned."""

import pytest

from lape_jax.data import labels
from lape_jax.data.sources import digits
from lape_jax.errors import UserError

LEARNED = ("cat", "dog", "owl")


def match(found, how="name"):
    return labels.match(LEARNED, found, how, what="the run", where="the val data")


@pytest.mark.parametrize(
    ("found", "numbers", "said"),
    [
        (("cat", "dog", "owl"), (0, 1, 2), ""),
        (
            ("owl", "cat", "dog"),
            (2, 0, 1),
            "the val data has the classes of the run in another order: they are matched",
        ),
        (("dog",), (1,), "the val data has 1 of the 3 classes that the run knows, matched by name"),
        (("ant", "cat", "dog", "owl"), (-1, 0, 1, 2), "1 classes that the run does not know, which are left out: ant"),
    ],
)
def test_by_name(found, numbers, said):
    result = match(found)
    assert result.numbers == numbers
    assert said in result.said
    assert bool(said) == bool(result.said)


def test_neither_holds_the_other():
    with pytest.raises(
        UserError, match=r"does not know \(0, 1, 2\), and lacks some that it knows \(cat, dog, owl\): ren"
    ):
        match(("0", "1", "2"))
    with pytest.raises(UserError, match=r"data\.match=order"):
        match(("cat", "dog", "owls"))


def test_by_order():
    result = match(("0", "1", "2"), "order")
    assert result.numbers == (0, 1, 2)
    assert "by their order" in result.said
    with pytest.raises(UserError, match="the run knows 3 classes, and the val data has 2"):
        match(("0", "1"), "order")


def test_a_data_set_under_other_names():
    source = digits("val")
    doubled = labels.Relabelled(source, [f"class {name}" for name in source.classes], lambda item: (item.label, item))
    assert len(doubled) == len(source)
    assert doubled.classes[3] == "class 3"
    assert doubled[5][0] == source[5].label
