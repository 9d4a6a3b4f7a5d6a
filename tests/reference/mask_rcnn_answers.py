"""The answers of torch_mask_rcnn.py and torch_detection_losses.py to the cases of mask_rcnn_cases.py.

Names end with the number of an image (0, 1), of a level (1 to 5) or of a region. Maps are (B, h, w, C).
"""

import dataclasses

import numpy as np
import torch

from tests.reference import torch_detection_losses as training
from tests.reference import torch_mask_rcnn as network
from tests.reference.cases import uniform
from tests.reference.mask_rcnn_cases import HEADS, REGIONS, DetectorCase
from tests.reference.mask_rcnn_states import BOX_SIDE, MASK_SIDE
from tests.reference.torch_deformable import Deformable
from tests.reference.torch_roi_align import mask_target, paste, roi_features
from tests.reference.torch_vit_adapter import State, tensors

Answer = dict[str, torch.Tensor]
PASTED = 4  # detections of an image


def limits(case: DetectorCase, train: bool) -> network.Limits:
    pre_nms = case.pre_nms_train if train else case.pre_nms_test
    return network.Limits(pre_nms=pre_nms, proposals=case.proposals, detections=case.detections)


def run(case: DetectorCase, state: State, **options):
    """(answers, pyramid, RPN's logits, RPN's deltas) of back-bone, pyramid and RPN."""
    sizes = case.shapes.backbone
    options |= {"depth": sizes.depth, "heads": HEADS, "join": sizes.join, "table_grid": sizes.table_grid}
    options["attend"] = Deformable(heads=HEADS, points=sizes.points)
    maps = network.backbone(state, torch.from_numpy(case.images()).permute(0, 3, 1, 2), **options)
    fpn = network.pyramid(state, maps)
    logits, deltas = network.rpn(state, fpn)
    found = {f"map{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(maps, start=1)}
    found |= {f"fpn{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(fpn, start=1)}
    found |= {f"rpn_logits{i}": x for i, x in enumerate(logits, start=1)}
    found |= {f"rpn_deltas{i}": x for i, x in enumerate(deltas, start=1)}
    return found, fpn, logits, deltas


def propose(case: DetectorCase, logits, deltas, train: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [network.proposals(logits, deltas, i, size, limits(case, train)) for i, size in enumerate(case.sizes)]


# ---- evaluation


@torch.no_grad()
def evaluated(case: DetectorCase) -> Answer:
    """Maps, proposals, detections (`scaled ...`: by the images' scales), pasted masks, and all of REGIONS."""
    state = tensors(case.state())
    found, fpn, logits, deltas = run(case, state)
    for i, (rois, scores) in enumerate(propose(case, logits, deltas, False)):
        found |= {f"proposals {i}": rois, f"proposal scores {i}": scores}
        for prefix, scale in (("", (1, 1)), ("scaled ", case.scales[i])):
            seen = network.detect(state, fpn, i, rois, case.sizes[i], limits(case, False), scale)
            fields = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
            found |= {f"{prefix}{name} {i}": value for name, value in fields.items()}
            size = [round(side / ratio) for side, ratio in zip(case.sizes[i], reversed(scale), strict=True)]
            pairs = list(zip(seen.masks, seen.boxes, strict=True))[:PASTED]
            found[f"{prefix}pasted {i}"] = torch.stack([paste(*pair, size) >= 0.5 for pair in pairs])
    rois, own = torch.tensor(REGIONS, dtype=torch.float64), network.of_image(fpn, 0)
    found["class logits"], found["box deltas"] = network.boxes_of(state, fpn, 0, rois)
    for kind, side in (("box", BOX_SIDE), ("mask", MASK_SIDE)):
        features = roi_features(own, rois, side).permute(0, 2, 3, 1)
        found |= {f"{kind} features {j}": x for j, x in enumerate(features)}
    masks = network.masks_of(state, fpn, 0, rois).permute(0, 2, 3, 1)
    return found | {f"mask logits {j}": x for j, x in enumerate(masks)}


# ---- training


def truths(case: DetectorCase) -> list[training.Truth]:
    kinds = case.boxes, case.labels, case.bitmaps
    return [
        training.Truth(*(torch.from_numpy(kind(i)) for kind in kinds), case.pad_shape(i))
        for i in range(len(case.sizes))
    ]


def draw(name: str, assigned: torch.Tensor, most: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positives and negatives: up to most[0] positives, then negatives up to most[1] in all; indices sorted."""
    order = np.argsort(uniform(name, (len(assigned),)))
    ranked = assigned[order]
    yes = order[ranked.numpy() >= 0][: most[0]]
    no = order[ranked.numpy() == training.NEGATIVE][: most[1] - len(yes)]
    return torch.from_numpy(np.sort(yes)), torch.from_numpy(np.sort(no))


def mask_targets(image: training.Truth, own: training.Regions) -> torch.Tensor:
    """(p, 28, 28) bool, of the positives."""
    found = torch.zeros(len(own.objects), 28, 28, dtype=torch.bool)
    for place, which in enumerate(own.objects.tolist()):
        found[place] = mask_target(image.bitmaps[which], own.rois[place], image.pad_shape).bool()
    return found


def trained(case: DetectorCase) -> Answer:
    """With the batch's statistics: maps, proposals, assignments, samples, mask targets, losses, gradients.

    The loss whose gradients are taken is `loss`, normalised over both images together; `grouped NAME` are the losses
    normalised by image. `moved NAME` are the running statistics after the batch.
    """
    state, moved = tensors(case.state(), requires_grad=True), {}
    found, fpn, logits, deltas = run(case, state, train=True, statistics=moved)
    proposed = [rois for rois, _ in propose(case, logits, deltas, True)]
    images, samples = truths(case), []
    for i, (rois, image) in enumerate(zip(proposed, images, strict=True)):
        anchors = training.assign_anchors(network.map_sizes(logits), image)
        regions = training.assign_regions(rois, image)
        pairs = draw(f"anchors {i}", anchors, case.anchors[i]) + draw(f"regions {i}", regions, case.regions[i])
        sample = training.Sample(*pairs)
        samples.append(sample)
        found |= {f"proposals {i}": rois, f"anchor objects {i}": anchors, f"region objects {i}": regions}
        found |= {f"sample {field.name} {i}": getattr(sample, field.name) for field in dataclasses.fields(sample)}
        own = training.regions(rois, image, sample, case.shapes.classes)
        found |= {f"sampled rois {i}": own.rois, f"sampled labels {i}": own.labels}
        found[f"mask targets {i}"] = mask_targets(image, own)
    args = state, fpn, logits, deltas, images, samples, proposed
    values = training.losses(*args)
    with torch.no_grad():
        grouped = training.losses(*args, group=1)
    values["loss"].backward()
    found |= values | {f"grouped {name}": value for name, value in grouped.items()}
    found |= {f"grad {name}": value.grad for name, value in state.items() if value.grad is not None}
    found |= {f"moved {name}": value for name, value in moved.items() if "num_batches" not in name}
    return found


def answer(case: DetectorCase) -> dict[str, np.ndarray]:
    """All of it; what is of training is called `train NAME`, but for gradients and statistics."""
    found = evaluated(case)
    for name, value in trained(case).items():
        found[name if name.startswith(("grad ", "moved ")) else f"train {name}"] = value
    return {name: value.detach().numpy() for name, value in found.items()}
