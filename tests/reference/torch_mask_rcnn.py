"""An independent Mask R-CNN on ViT-Adapter in PyTorch, from the formulas of He et al. 2017, Lin et al. 2017 (FPN).

Names are those of MMDetection's models, and so are the details (2.22): `backbone.*` (torch_vit_adapter.py), `neck.*`,
`rpn_head.*`, `roi_head.*`. Every function takes the whole state dict and computes in its dtype. Maps are (B, C, H, W).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tests.reference import torch_boxes
from tests.reference.mask_rcnn_states import BOX_SIDE, MASK_SIDE
from tests.reference.torch_boxes import BOX_STDS, clip, decode
from tests.reference.torch_deformable import linear
from tests.reference.torch_roi_align import roi_features
from tests.reference.torch_vit_adapter import State, vit_adapter


@dataclasses.dataclass(frozen=True)
class Limits:
    """Thresholds and numbers of boxes: the defaults are the official ones, `pre_nms` that of evaluation."""

    pre_nms: int = 1000  # proposals of a level before NMS; in training 2000
    rpn_nms: float = 0.7
    proposals: int = 1000  # of all levels together
    score: float = 0.05
    nms: float = 0.5
    detections: int = 100


def conv(state: State, name: str, x: Tensor) -> Tensor:
    """Stride 1; a kernel of 3 keeps the size."""
    weight = state[f"{name}.weight"]
    return functional.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def backbone(state: State, images: Tensor, *, train: bool = False, statistics: State | None = None, **options):
    """The four maps; `options` are those of `vit_adapter`, `statistics` gets the running ones by their full names."""
    inner: State = {}
    own = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    maps = vit_adapter(own, images, variant="detection", train=train, statistics=inner, **options)
    if statistics is not None:
        statistics.update({f"backbone.{name}": value for name, value in inner.items()})
    return maps


def pyramid(state: State, maps: Sequence[Tensor]) -> list[Tensor]:
    """Five maps at strides 4 to 64: lateral 1x1, nearest neighbours added from the top down, 3x3 each.

    The fifth has every second row and column of the fourth.
    """
    merged = [conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    for i in (2, 1, 0):
        height, width = merged[i].shape[2:]
        above = merged[i + 1]
        rows = torch.arange(height) * above.shape[2] // height
        columns = torch.arange(width) * above.shape[3] // width
        merged[i] = merged[i] + above[:, :, rows][:, :, :, columns]
    found = [conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(merged)]
    return [*found, found[3][:, :, ::2, ::2]]


# ---- the region proposal network


def rpn(state: State, fpn: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """By level, in the order of the anchors (y, x, ratio): logits (B, h, w, 3) and deltas (B, h, w, 3, 4)."""
    logits, deltas = [], []
    for x in fpn:
        hidden = torch.relu(conv(state, "rpn_head.rpn_conv", x))
        logits.append(conv(state, "rpn_head.rpn_cls", hidden).permute(0, 2, 3, 1))
        deltas.append(conv(state, "rpn_head.rpn_reg", hidden).permute(0, 2, 3, 1).unflatten(-1, (-1, 4)))
    return logits, deltas


def map_sizes(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Of the answers of `rpn`."""
    return [(level.shape[1], level.shape[2]) for level in levels]


@torch.no_grad()
def proposals(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], image: int, size: tuple[int, int], limits: Limits
) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and scores (n,) of one image, whose part that is no padding has the size (height, width).

    A level: the best `pre_nms` by score, decoded, clipped to the image, what is empty dropped, NMS. Then the best
    `proposals` of all levels. No gradient goes through them.
    """
    boxes, scores = [], []
    anchors = torch_boxes.anchors(map_sizes(logits), logits[0].dtype)
    for level, anchor in enumerate(anchors):
        score = torch.sigmoid(logits[level][image]).flatten()
        best = torch.argsort(score, descending=True, stable=True)[: limits.pre_nms]
        found = decode(anchor.reshape(-1, 4)[best], deltas[level][image].reshape(-1, 4)[best])
        found, score = clip(found, size), score[best]
        full = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        found, score = found[full], score[full]
        kept = torch_boxes.nms(found, score, limits.rpn_nms)
        boxes.append(found[kept])
        scores.append(score[kept])
    boxes, scores = torch.cat(boxes), torch.cat(scores)
    best = torch.argsort(scores, descending=True, stable=True)[: limits.proposals]
    return boxes[best], scores[best]


# ---- the heads of the regions


def of_image(fpn: Sequence[Tensor], image: int) -> list[Tensor]:
    """Of one image, the four maps (C, h, w) that regions are read from."""
    return [x[image] for x in fpn[:4]]


def box_head(state: State, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (r, K + 1), the background last, and deltas (r, K, 4) of features (r, C, 7, 7)."""
    name = "roi_head.bbox_head"
    hidden = torch.relu(linear(state, f"{name}.shared_fcs.0", features.flatten(1)))  # (channel, y, x)
    hidden = torch.relu(linear(state, f"{name}.shared_fcs.1", hidden))
    return linear(state, f"{name}.fc_cls", hidden), linear(state, f"{name}.fc_reg", hidden).unflatten(-1, (-1, 4))


def mask_head(state: State, features: Tensor) -> Tensor:
    """Logits (r, K, 28, 28) of features (r, C, 14, 14)."""
    name, x = "roi_head.mask_head", features
    for i in range(4):
        x = torch.relu(conv(state, f"{name}.convs.{i}.conv", x))
    # Every pixel becomes 2 x 2 of its own: pixel (2y + k, 2x + l) is weight[:, :, k, l] of pixel (y, x).
    found = torch.einsum("rchw,cdkl->rdhkwl", x, state[f"{name}.upsample.weight"])
    x = found.flatten(2, 3).flatten(3, 4) + state[f"{name}.upsample.bias"][:, None, None]
    return conv(state, f"{name}.conv_logits", torch.relu(x))


def boxes_of(state: State, fpn: Sequence[Tensor], image: int, rois: Tensor) -> tuple[Tensor, Tensor]:
    return box_head(state, roi_features(of_image(fpn, image), rois, BOX_SIDE))


def masks_of(state: State, fpn: Sequence[Tensor], image: int, rois: Tensor) -> Tensor:
    return mask_head(state, roi_features(of_image(fpn, image), rois, MASK_SIDE))


# ---- detections


@dataclasses.dataclass(frozen=True)
class Detections:
    """Of one image, best first: boxes in pixels of the original image, and the mask logits of the label."""

    boxes: Tensor  # (n, 4)
    scores: Tensor  # (n,)
    labels: Tensor  # (n,)
    masks: Tensor  # (n, 28, 28)


def choose(
    rois: Tensor,
    logits: Tensor,
    deltas: Tensor,
    size: tuple[int, int],
    limits: Limits,
    scale_factor: Sequence[float] = (1, 1),
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of one image from the answers of the box head.

    Every class of every RoI with a score above the threshold is one; its box is clipped to `size` (height, width),
    divided by `scale_factor` (of x, of y), and meets in NMS those of its class. Then the best of all classes.
    """
    scores = torch.softmax(logits, dim=-1)[:, :-1]
    boxes = clip(decode(rois[:, None], deltas, BOX_STDS), size)
    boxes = boxes / torch.tensor([*scale_factor, *scale_factor], dtype=boxes.dtype)
    roi, label = torch.nonzero(scores > limits.score, as_tuple=True)
    boxes, scores = boxes[roi, label], scores[roi, label]
    kept = torch_boxes.nms_by_class(boxes, scores, label, limits.nms)[: limits.detections]
    return boxes[kept], scores[kept], label[kept]


@torch.no_grad()
def detect(
    state: State,
    fpn: Sequence[Tensor],
    image: int,
    rois: Tensor,
    size: tuple[int, int],
    limits: Limits | None = None,
    scale_factor: Sequence[float] = (1, 1),
) -> Detections:
    """The detections of one image from its proposals; masks are read at the refined boxes, scaled back."""
    logits, deltas = boxes_of(state, fpn, image, rois)
    boxes, scores, labels = choose(rois, logits, deltas, size, limits or Limits(), scale_factor)
    places = boxes * torch.tensor([*scale_factor, *scale_factor], dtype=boxes.dtype)
    masks = masks_of(state, fpn, image, places)
    return Detections(boxes, scores, labels, masks[torch.arange(len(labels)), labels])
