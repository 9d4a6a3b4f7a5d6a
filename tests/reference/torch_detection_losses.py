"""The training of Mask R-CNN in PyTorch: which box learns what, and the five losses of samples that are given.

From the formulas of Faster and Mask R-CNN, with the details of MMDetection 2.22. Nothing is drawn at random here: a
`Sample` says which anchors and regions take part.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tests.reference import torch_boxes
from tests.reference.torch_boxes import BOX_STDS, encode, iou
from tests.reference.torch_mask_rcnn import boxes_of, map_sizes, masks_of
from tests.reference.torch_roi_align import mask_target
from tests.reference.torch_vit_adapter import State

NEGATIVE, IGNORED = -1, -2
NAMES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")


@dataclasses.dataclass(frozen=True)
class Truth:
    """The objects of one image."""

    boxes: Tensor  # (g, 4)
    labels: Tensor  # (g,)
    bitmaps: Tensor  # (g, pad_h, pad_w)
    pad_shape: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Matching:
    """Thresholds of the IoU: from `positive` on, below `negative`, and what the best box of an object must have."""

    positive: float
    negative: float
    best: float


ANCHORS, REGIONS = Matching(0.7, 0.3, 0.3), Matching(0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one image's losses are of: indices into all its anchors, and into its candidate regions (`candidates`)."""

    anchors: Tensor  # (P,) positives
    no_anchors: Tensor  # (Q,) negatives
    regions: Tensor  # (p,) positives
    no_regions: Tensor  # (q,) negatives


def assign(boxes: Tensor, objects: Tensor, matching: Matching) -> Tensor:
    """(n,): the index of the object that a box is to find, or NEGATIVE, or IGNORED (between the thresholds).

    Then every object, in order, takes all boxes that have exactly its best IoU, if that is at least `best`.
    """
    found = torch.full((len(boxes),), NEGATIVE)
    if not len(objects) or not len(boxes):
        return found
    overlaps = iou(boxes, objects)
    for i, row in enumerate(overlaps):
        most = row.max()
        if most >= matching.positive:
            found[i] = row.tolist().index(float(most))  # the first of those that tie
        elif most >= matching.negative:
            found[i] = IGNORED
    for j, column in enumerate(overlaps.T):
        if column.max() >= matching.best:
            found[column == column.max()] = j
    return found


def assign_anchors(sizes: Sequence[tuple[int, int]], truth: Truth, dtype: torch.dtype = torch.float64) -> Tensor:
    """(N,), over all levels: as `assign`; anchors of cells beyond the padded image are IGNORED."""
    anchors = flat_anchors(sizes, dtype)
    valid = torch_boxes.valid_anchors(sizes, truth.pad_shape)
    found = torch.full((len(anchors),), IGNORED)
    found[valid] = assign(anchors[valid], truth.boxes.to(dtype), ANCHORS)
    return found


def candidates(proposals: Tensor, truth: Truth) -> Tensor:
    """The regions that are sampled from: the objects' boxes, then the proposals."""
    return torch.cat([truth.boxes.to(proposals.dtype), proposals])


def assign_regions(proposals: Tensor, truth: Truth) -> Tensor:
    """(g + n,), of `candidates`: an object's own box finds that object; proposals as `assign`."""
    return torch.cat([torch.arange(len(truth.boxes)), assign(proposals, truth.boxes.to(proposals.dtype), REGIONS)])


def flat_anchors(sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    return torch.cat([level.reshape(-1, 4) for level in torch_boxes.anchors(sizes, dtype)])


def flat(levels: Sequence[Tensor], *, last: int) -> Tensor:
    """(B, N) or (B, N, 4) of the RPN's answers, `last` axes kept."""
    return torch.cat([x.flatten(1, x.dim() - 1 - last) for x in levels], dim=1)


# ---- losses


def rpn_losses(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], truths: Sequence[Truth], samples: Sequence[Sample]
) -> tuple[Tensor, Tensor]:
    """Of the sampled anchors of all images together: cross entropy, and |delta - target| of the positives.

    Both sums are divided by the sum over images of max(P, 1) + max(Q, 1).
    """
    sizes = map_sizes(logits)
    scores, found = flat(logits, last=0), flat(deltas, last=1)
    anchors = flat_anchors(sizes, scores.dtype)
    score_loss = box_loss = torch.zeros((), dtype=scores.dtype)
    count = 0
    for i, (truth, sample) in enumerate(zip(truths, samples, strict=True)):
        yes, no = sample.anchors, sample.no_anchors
        score_loss = score_loss + functional.softplus(-scores[i, yes]).sum() + functional.softplus(scores[i, no]).sum()
        objects = assign_anchors(sizes, truth, scores.dtype)[yes]
        assert (objects >= 0).all()
        if len(yes):
            targets = encode(anchors[yes], truth.boxes.to(scores.dtype)[objects])
            box_loss = box_loss + (found[i, yes] - targets).abs().sum()
        count += max(len(yes), 1) + max(len(no), 1)
    return score_loss / count, box_loss / count


@dataclasses.dataclass(frozen=True)
class Regions:
    """The sampled regions of one image, positives first, and what they are to find."""

    rois: Tensor  # (r, 4)
    labels: Tensor  # (r,), of negatives K
    objects: Tensor  # (p,) of positives


def regions(proposals: Tensor, truth: Truth, sample: Sample, classes: int) -> Regions:
    objects = assign_regions(proposals, truth)[sample.regions]
    assert (objects >= 0).all()
    rois = candidates(proposals, truth)[torch.cat([sample.regions, sample.no_regions])]
    background = torch.full((len(sample.no_regions),), classes)
    return Regions(rois, torch.cat([truth.labels[objects], background]), objects)


def region_losses(
    state: State, fpn: Sequence[Tensor], truths: Sequence[Truth], sampled: Sequence[Regions]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of all images together: class, box and mask.

    Class: the mean cross entropy over all sampled regions. Box: |delta - target| of the true class of the positives,
    summed, over the number of **all** sampled regions. Mask: the mean cross entropy of the map of the true class, over
    positives and pixels; without a positive, zero.
    """
    class_terms, box_terms, mask_terms = [], [], []
    for i, (truth, region) in enumerate(zip(truths, sampled, strict=True)):
        logits, deltas = boxes_of(state, fpn, i, region.rois)
        class_terms.append(-torch.log_softmax(logits, dim=-1)[torch.arange(len(region.rois)), region.labels])
        for place, which in enumerate(region.objects.tolist()):
            roi, label = region.rois[place], region.labels[place]
            target = encode(roi, truth.boxes[which].to(roi.dtype), BOX_STDS)
            box_terms.append((deltas[place, label] - target).abs().sum())
            mask = masks_of(state, fpn, i, roi[None])[0, label]
            wanted = mask_target(truth.bitmaps[which], roi, truth.pad_shape)
            mask_terms.append((functional.softplus(mask) - wanted * mask).mean())
    class_terms = torch.cat(class_terms)
    nothing = class_terms.sum() * 0
    box = sum(box_terms, start=nothing) / len(class_terms)
    mask = sum(mask_terms, start=nothing) / max(len(mask_terms), 1)
    return class_terms.mean(), box, mask


def losses(
    state: State,
    fpn: Sequence[Tensor],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    truths: Sequence[Truth],
    samples: Sequence[Sample],
    proposals: Sequence[Tensor],
    group: int | None = None,
) -> dict[str, Tensor]:
    """The five losses by name and their sum `loss`, normalised jointly over the batch.

    `group`: over every group of so many images (of a device) instead; then the mean of the groups is taken.
    """
    if group is not None:
        parts = []
        for start in range(0, len(truths), group):
            own = slice(start, start + group)
            levels = ([x[own] for x in kind] for kind in (fpn, logits, deltas))
            parts.append(losses(state, *levels, truths[own], samples[own], proposals[own]))
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    classes = state["roi_head.mask_head.conv_logits.weight"].shape[0]
    sampled = [regions(*each, classes) for each in zip(proposals, truths, samples, strict=True)]
    found = [*rpn_losses(logits, deltas, truths, samples), *region_losses(state, fpn, truths, sampled)]
    return {**dict(zip(NAMES, found, strict=True)), "loss": sum(found)}
