"""What the heads should answer, at the anchors and RoIs that were drawn. Functions are of one image."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer, Key, UInt8

from lape_jax.nn.detection.coder import UNIT, encode
from lape_jax.nn.detection.heads import STDS
from lape_jax.tasks.detect import assign, sample
from lape_jax.tasks.detect.sample import Sample


class Objects(NamedTuple):
    """The objects of an image, in g places.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the canvas.
        labels: the classes of the objects.
        valid: which places hold one.
        masks: see `lape_jax.tasks.detect.masks`.
    """

    boxes: Float[Array, "*b g 4"]
    labels: Integer[Array, "*b g"]
    valid: Bool[Array, "*b g"]
    masks: UInt8[Array, "*b g s e"]


class Anchors(NamedTuple):
    """Anchors that were drawn.

    Attributes:
        sample: which they are, and whether they are positive.
        deltas: from the anchor to the object's box; 0 unless positive.
    """

    sample: Sample
    deltas: Float[Array, "*b k 4"]


class Rois(NamedTuple):
    """RoIs that were drawn.

    Attributes:
        sample: which of the objects' boxes and proposals they are, and whether they are positive.
        boxes: the boxes of the RoIs; 0 for empty places.
        labels: the object's class; the number of classes for background and empty places.
        deltas: from the RoI to the object's box, divided by STDS; 0 unless positive.
    """

    sample: Sample
    boxes: Float[Array, "*b k 4"]
    labels: Int32[Array, "*b k"]
    deltas: Float[Array, "*b k 4"]


def draw_anchors(
    key: Key[Array, ""], anchors: Float[Array, "n 4"], usable: Bool[Array, " n"], objects: Objects
) -> Anchors:
    """256 anchors, at most 128 of them positive."""
    assigned = assign.assign(anchors, usable, objects.boxes, objects.valid, assign.ANCHORS)
    return of_anchors(sample.draw(key, assigned, sample.ANCHORS), anchors, objects)


def draw_rois(
    key: Key[Array, ""], proposals: Float[Array, "n 4"], usable: Bool[Array, " n"], objects: Objects, classes: int
) -> Rois:
    """512 of the objects' own boxes and the proposals, at most 128 of them positive."""
    candidates, assigned = assign.with_objects(proposals, usable, objects.boxes, objects.valid)
    return of_rois(sample.draw(key, assigned, sample.ROIS), candidates, objects, classes)


def of_anchors(drawn: Sample, anchors: Float[Array, "n 4"], objects: Objects) -> Anchors:
    """What anchors that were drawn should answer."""
    return Anchors(drawn, _deltas(anchors[drawn.index], objects.boxes, drawn, UNIT))


def of_rois(drawn: Sample, candidates: Float[Array, "n 4"], objects: Objects, classes: int) -> Rois:
    """What candidates that were drawn should answer, of so many classes."""
    boxes = jnp.where(drawn.used[:, None], candidates[drawn.index], 0)
    labels = jnp.where(drawn.positive, objects.labels[drawn.own].astype(jnp.int32), classes)
    return Rois(drawn, boxes, labels, _deltas(boxes, objects.boxes, drawn, STDS))


def _deltas(
    start: Float[Array, "k 4"], boxes: Float[Array, "g 4"], drawn: Sample, stds: tuple[float, ...]
) -> Float[Array, "k 4"]:
    positive = drawn.positive[:, None]
    unit = jnp.asarray([0, 0, 1, 1], start.dtype)  # in place of what may have no area
    deltas = encode(jnp.where(positive, start, unit), jnp.where(positive, boxes[drawn.own], unit), stds)
    return jnp.where(positive, deltas, 0)
