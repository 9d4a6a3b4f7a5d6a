"""Which anchors or RoIs are learned from: so many at random, a part of them objects.

Source: open-mmlab/mmdetection 2.22, `core/bbox/samplers/{base,random}_sampler.py`. Functions are of one image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Key

from lape_jax.tasks.detect.assign import BACKGROUND


class Share(NamedTuple):
    """How many candidates are drawn, and how many of them are to find an object, both at most."""

    total: int
    positives: int


ANCHORS = Share(256, 128)
ROIS = Share(512, 128)


class Sample(NamedTuple):
    """Candidates that were drawn: first those that are to find an object, then those of background, then empty places.

    Attributes:
        index: the index of the candidate; 0 for an empty place.
        own: the object that it is to find; 0 if there is none.
        positive: whether there is one.
        used: whether the place is not empty.
    """

    index: Int32[Array, " k"]
    own: Int32[Array, " k"]
    positive: Bool[Array, " k"]
    used: Bool[Array, " k"]


def draw(key: Key[Array, ""], assigned: Int32[Array, " n"], share: Share) -> Sample:
    """Draws at most `share.positives` candidates with an object, and fills up to `share.total` with background.

    Each candidate gets a number of 30 random bits, and those with the largest are taken: as the numbers are
    independent and of one distribution, each set of so many candidates is as likely as any other, without replacement.
    Equal numbers, of which the first wins, matter once in 4,000 images at 260,000 candidates.

    Args:
        key: the random key of the image; the same key draws the same.
        assigned: see `lape_jax.tasks.detect.assign.assign`.
        share: how many; of fewer candidates there are only as many places.
    """
    share = Share(*(min(count, len(assigned)) for count in share))
    # The bits of positive floats, in the order of the integers that they are, as XLA sorts all integers on a TPU for
    # the largest few of them, but not all floats. From the least normal float on: a smaller one may be taken for 0.
    bits = (jax.random.bits(key, assigned.shape, jnp.uint32) >> 2) + (1 << 23)
    numbers = jax.lax.bitcast_convert_type(bits, jnp.float32)

    def largest(eligible, count):
        """`count` numbers of candidates, those drawn first, and how many were."""
        _, index = jax.lax.top_k(jnp.where(eligible, numbers, 0), count)
        return index, jnp.minimum(eligible.sum(dtype=jnp.int32), count)

    positives, found = largest(assigned >= 0, share.positives)
    negatives, others = largest(assigned == BACKGROUND, share.total)
    place = jnp.arange(share.total, dtype=jnp.int32)
    positive, used = place < found, place < jnp.minimum(found + others, share.total)
    after = negatives[jnp.clip(place - found, 0, len(negatives) - 1)]
    index = jnp.where(positive, positives[jnp.minimum(place, len(positives) - 1)], jnp.where(used, after, 0))
    return Sample(index, jnp.where(positive, assigned[index], 0), positive, used)


def image_keys(key: Key[Array, ""], images: int) -> Key[Array, " {images}"]:
    """A key for each image of the whole batch: what is drawn of an image does not depend on the devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images))
