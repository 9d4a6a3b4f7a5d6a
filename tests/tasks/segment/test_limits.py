import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.tasks.segment import sliding
from lape_jax.tasks.segment.limits import MOST, Limits

SMALL = Limits(scale=(64, 48), window=32, stride=32, grid=4, classes=2)


@pytest.mark.parametrize("size", [(1, 6000), (6000, 1), (2, 20_000), (1, 2000)])
def test_what_is_too_narrow_is_refused_at_once(size):
    message = rf"an image of {size[1]} x {size[0]} pixels .* by \d+ windows, more than memory is for: it is too narrow"
    with pytest.raises(UserError, match=message):
        SMALL.check(*size)


def test_every_scale_counts():
    SMALL.check(100, 300)
    with pytest.raises(UserError, match="it is too narrow for windows of 32, or the scale too large"):
        SMALL._replace(scale=(10**4, 10**4), stride=1, factors=(0.01, 1.0)).check(100, 300)
    with pytest.raises(UserError, match=r"an image of 9000 x 2 pixels .* at 2304000 x 512, more than 89478485 pixels"):
        Limits().check(2, 9000)


def test_photographs_and_panoramas_may_be_segmented():
    for size in ((480, 640), (4000, 6000), (6000, 4000), (1000, 20_000), (300, 20_000), (1, 1)):
        Limits().check(*size)
        Limits(factors=(0.5, 1.0, 1.75)).check(*size)


def test_the_bound_is_that_of_the_table():
    """The largest that passes has a table of at most MOST numbers, and one that is 5 % longer more."""
    longest = max(length for length in range(1, 1500, 10) if passes(1, length))
    for length, within in ((longest, True), (round(longest * 1.05), False)):
        canvas = 32 * length
        count = len(sliding.anchors(canvas, 32, 32))
        assert (count * canvas * 4 <= MOST) is within
    assert sliding.weights(100, 3200, 32, 32, 4).shape == (100, 100, 4)
    np.testing.assert_allclose(sliding.weights(100, 3200, 32, 32, 4).sum((0, 2)), 1, rtol=1e-6)


def test_with_a_multiple_no_image_is_too_narrow():
    whole = Limits(stride=341, grid=128, multiple=32)
    for size in ((1, 9000), (9000, 2), (375, 500), (1, 1), (6000, 4000)):
        whole.check(*size)
    with pytest.raises(UserError, match=r"at 20480 x 32 by 60 windows, more than memory is for"):
        whole._replace(scale=(20480, 5120)).check(1, 9000)


def passes(*size):
    try:
        SMALL.check(*size)
    except UserError:
        return False
    return True
