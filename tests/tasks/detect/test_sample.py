"""Random samples: how many, without replacement, and every candidate as likely as the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.tasks.detect import sample
from lape_jax.tasks.detect.assign import BACKGROUND, IGNORED
from lape_jax.tasks.detect.sample import Share
from tests.quick import jit

draw = jit(sample.draw, static_argnames="share")


def assigned(positives, negatives, ignored):
    """Candidates in random order; positives are to find the objects 0, 1, ... in turn."""
    values = [*np.arange(positives) % 7, *[BACKGROUND] * negatives, *[IGNORED] * ignored]
    return np.random.default_rng(0).permutation(values).astype(np.int32)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (5, 600, (5, 251)),  # negatives fill up
        (200, 600, (128, 128)),
        (200, 50, (128, 50)),  # fewer candidates than places
        (128, 128, (128, 128)),
        (0, 600, (0, 256)),  # an image without objects
        (0, 10, (0, 10)),
        (9, 0, (9, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts(positives, negatives, expected):
    given = assigned(positives, negatives, 900 - positives - negatives)
    found = jax.tree.map(np.asarray, draw(jax.random.key(0), given, share=sample.ANCHORS))
    assert {len(part) for part in found} == {256}
    assert (found.positive.sum(), (found.used & ~found.positive).sum()) == expected
    count = sum(expected)
    np.testing.assert_array_equal(found.used, np.arange(256) < count)
    np.testing.assert_array_equal(found.positive, np.arange(256) < expected[0])
    assert len(set(found.index[:count])) == count
    chosen = given[found.index[:count]]
    np.testing.assert_array_equal(chosen[: expected[0]], found.own[: expected[0]])
    assert (chosen[: expected[0]] >= 0).all()
    assert (chosen[expected[0] :] == BACKGROUND).all()
    assert not found.index[count:].any()
    assert not found.own[expected[0] :].any()


def test_fewer_candidates_than_places():
    found = draw(jax.random.key(0), assigned(3, 4, 2), share=sample.ROIS)
    assert (found.index.shape, found.used.sum(), found.positive.sum()) == ((9,), 7, 3)


def test_every_set_is_as_likely_as_the_others():
    """2 of 4 positives, and 3 of 5 negatives: 6 and 10 sets."""
    given = np.int32([0, BACKGROUND, BACKGROUND, 1, IGNORED, BACKGROUND, 0, 0, BACKGROUND, BACKGROUND])
    count = 12000
    keys = jax.random.split(jax.random.key(1), count)
    found = jit(jax.vmap(lambda key, given: sample.draw(key, given, Share(5, 2)), (0, None)))(keys, given)
    masks = np.zeros((count, 10), bool)
    np.put_along_axis(masks, np.asarray(found.index), True, axis=1)
    for kind, sets in ((given >= 0, 6), (given == BACKGROUND, 10)):
        numbers = masks[:, kind] @ (1 << np.arange(kind.sum()))
        _, often = np.unique(numbers, return_counts=True)
        assert len(often) == sets
        expected = count / sets
        assert ((often - expected) ** 2 / expected).sum() < 2.5 * sets  # chi squared: its mean is sets - 1
    assert not masks[:, given == IGNORED].any()


def test_what_an_image_gets_depends_on_its_place_in_the_batch_alone():
    few, many = (sample.image_keys(jax.random.key(3), images) for images in (2, 8))
    np.testing.assert_array_equal(jax.random.key_data(few), jax.random.key_data(many)[:2])
    assert len(np.unique(jax.random.key_data(many), axis=0)) == 8
    assert jnp.issubdtype(few.dtype, jax.dtypes.prng_key)
