"""The yardstick of Mask R-CNN itself, against values worked out by hand and PyTorch's own layers."""

import hashlib
import math

import pytest

from tests.reference import mask_rcnn_states as states
from tests.reference.cases import uniform
from tests.reference.mask_rcnn_states import Sizes, mask_rcnn_shapes, random_values, tiny
from tests.reference.vit_adapter_states import Sizes as BackboneSizes
from tests.reference.vit_adapter_states import learned

torch = pytest.importorskip("torch")
from tests.reference import torch_mask_rcnn  # noqa: E402  (needs torch)
from tests.reference.torch_deformable import Deformable  # noqa: E402
from tests.reference.torch_vit_adapter import tensors  # noqa: E402

pytestmark = pytest.mark.peer

OPTIONS = {"depth": 4, "heads": 2, "table_grid": (4, 4), "attend": Deformable(heads=2, points=3)}


def draw(name: str, *shape: int):
    return torch.from_numpy(uniform(name, shape))


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def maximum(tensor) -> float:
    return float(tensor.detach().abs().max())


# ---- names, shapes, values


@pytest.mark.parametrize(
    ("width", "join", "count"),
    [
        (192, "default", 28_068_512),
        (192, "lape", 28_068_512 + 4_608),
        (384, "default", 47_802_368),
        (384, "lape", 47_802_368 + 9_216),
    ],
)
def test_parameter_counts_are_the_official_ones(width, join, count):
    shapes = mask_rcnn_shapes(Sizes(backbone=BackboneSizes(width=width, join=join)))
    assert sum(map(math.prod, learned(shapes).values())) == count


def test_counts_of_the_parts():
    shapes, expected = mask_rcnn_shapes(Sizes()), {"neck.": 2_557_952, "rpn_head.": 593_935}
    expected |= {"roi_head.bbox_head.": 14_306_705, "roi_head.mask_head.": 2_643_280}
    for prefix, count in expected.items():
        assert sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix)) == count


def test_names_and_shapes_are_those_of_the_official_state_dict():
    # SHA-256 of the official model's list of tensors, "name shape" a line, in its order.
    shapes = mask_rcnn_shapes(Sizes())
    assert (len(shapes), len(learned(shapes))) == (452, 422)
    lines = "".join(f"{name} {shape}\n" for name, shape in shapes.items())
    assert (
        hashlib.sha256(lines.encode()).hexdigest() == "e8154ffe9d552d9fd2ca1da4e6915e03109fa3154b8b83715c1f2ba7472a5317"
    )


def test_initial_spreads():
    shapes = mask_rcnn_shapes(Sizes())
    expected = {
        "neck.lateral_convs.0.conv": ("uniform", math.sqrt(2 / (192 + 256))),
        "neck.fpn_convs.3.conv": ("uniform", math.sqrt(2 / (256 * 9 * 2))),
        "rpn_head.rpn_conv": ("normal", 0.01),
        "rpn_head.rpn_reg": ("normal", 0.01),
        "roi_head.bbox_head.shared_fcs.0": ("uniform", math.sqrt(2 / (12544 + 1024))),
        "roi_head.bbox_head.fc_cls": ("normal", 0.01),
        "roi_head.bbox_head.fc_reg": ("normal", 0.001),
        "roi_head.mask_head.convs.2.conv": ("normal", math.sqrt(2 / (256 * 9))),
        "roi_head.mask_head.upsample": ("normal", math.sqrt(2 / 1024)),
        "roi_head.mask_head.conv_logits": ("normal", math.sqrt(2 / 80)),
    }
    for name, (kind, deviation) in expected.items():
        found = states.initial(f"{name}.weight", shapes[f"{name}.weight"])
        assert found == (kind, pytest.approx(deviation, rel=1e-12)), name


# ---- the network


@pytest.mark.parametrize("size", [(3, 4), (4, 2)])
def test_pyramid_is_that_of_pytorch(size):
    state = tensors(random_values(tiny(), (6, 8)))
    maps = [draw(f"map {i}", 2, 16, *(side * 2 ** (3 - i) for side in size)) for i in range(4)]
    found = torch_mask_rcnn.pyramid(state, maps)
    layers = lambda kind, i: (state[f"neck.{kind}_convs.{i}.conv.{leaf}"] for leaf in ("weight", "bias"))  # noqa: E731
    above = None
    for i in (3, 2, 1, 0):
        merged = torch.nn.functional.conv2d(maps[i], *layers("lateral", i))
        if above is not None:
            merged = merged + torch.nn.functional.interpolate(above, size=merged.shape[2:], mode="nearest")
        above = merged
        expected = torch.nn.functional.conv2d(merged, *layers("fpn", i), padding=1)
        assert maximum(found[i] - expected) < 1e-13
    assert torch.equal(found[4], torch.nn.functional.max_pool2d(found[3], 1, stride=2))


def test_upsampling_of_masks_is_a_transposed_convolution():
    state, features = tensors(random_values(tiny(), (6, 8))), draw("features", 3, 8, 14, 14)
    x, name = features, "roi_head.mask_head"
    for i in range(4):
        x = torch.relu(torch_mask_rcnn.conv(state, f"{name}.convs.{i}.conv", x))
    weight, bias = state[f"{name}.upsample.weight"], state[f"{name}.upsample.bias"]
    x = torch.relu(torch.nn.functional.conv_transpose2d(x, weight, bias, stride=2))
    expected = torch_mask_rcnn.conv(state, f"{name}.conv_logits", x)
    assert expected.shape == (3, 5, 28, 28)
    assert maximum(torch_mask_rcnn.mask_head(state, features) - expected) < 1e-13


def test_box_head_reads_channels_first():
    state, features = tensors(random_values(tiny(), (6, 8))), draw("features", 3, 8, 7, 7)
    first = torch.relu(
        features.reshape(3, -1) @ state["roi_head.bbox_head.shared_fcs.0.weight"].T
        + state["roi_head.bbox_head.shared_fcs.0.bias"]
    )
    hidden = torch.relu(
        first @ state["roi_head.bbox_head.shared_fcs.1.weight"].T + state["roi_head.bbox_head.shared_fcs.1.bias"]
    )
    logits, deltas = torch_mask_rcnn.box_head(state, features)
    assert (logits.shape, deltas.shape) == ((3, 6), (3, 5, 4))
    row = state["roi_head.bbox_head.fc_reg.weight"][4 * 2 + 3], state["roi_head.bbox_head.fc_reg.bias"][4 * 2 + 3]
    assert maximum(deltas[:, 2, 3] - (hidden @ row[0] + row[1])) < 1e-13


def test_rpn_answers_stand_in_the_order_of_the_anchors():
    state, fpn = tensors(random_values(tiny(), (6, 8))), [draw("map", 2, 8, 3, 4)]
    (logits,), (deltas,) = torch_mask_rcnn.rpn(state, fpn)
    assert (logits.shape, deltas.shape) == ((2, 3, 4, 3), (2, 3, 4, 3, 4))
    hidden = torch.relu(torch_mask_rcnn.conv(state, "rpn_head.rpn_conv", fpn[0]))
    plain = torch_mask_rcnn.conv(state, "rpn_head.rpn_reg", hidden)
    assert maximum(deltas[1, 2, 3, 1, 2] - plain[1, 1 * 4 + 2, 2, 3]) == 0


def test_proposals_of_known_deltas():
    # One map of one cell a level; all deltas zero: the proposals are the anchors, clipped to an image of 20 x 24.
    logits = [torch.full((1, 1, 1, 3), -9.0, dtype=torch.float64) + level for level in range(5)]
    deltas = [torch.zeros(1, 1, 1, 3, 4, dtype=torch.float64) for _ in range(5)]
    logits[0][0, 0, 0] = double([1, 3, 2])
    boxes, scores = torch_mask_rcnn.proposals(logits, deltas, 0, (20, 24), torch_mask_rcnn.Limits())
    root = math.sqrt(2)
    assert maximum(boxes[0] - double([0, 0, 16, 16])) == 0
    assert maximum(scores[:1] - double([3]).sigmoid()) == 0
    # 8 root = 11.3 by 20 and 22.6 by 11.3: IoU with the square 181 / 301 and less: both stay.
    assert maximum(boxes[1] - double([0, 0, 8 * root, 20])) < 1e-13
    assert maximum(boxes[2] - double([0, 0, 16 * root, 8 * root])) < 1e-13
    assert len(boxes) == 3 + 4  # of higher levels one each: the second's are 24 x 20, twice, and 22.6 x 20
    # A level has its best only, and all levels together have their best.
    few, _ = torch_mask_rcnn.proposals(logits, deltas, 0, (20, 24), torch_mask_rcnn.Limits(pre_nms=1))
    assert len(few) == 5
    few, _ = torch_mask_rcnn.proposals(logits, deltas, 0, (20, 24), torch_mask_rcnn.Limits(proposals=2))
    assert torch.equal(few, boxes[:2])
    # A box beyond the image is empty after clipping, and is no proposal.
    deltas[0][..., 0] = 9
    few, _ = torch_mask_rcnn.proposals(logits, deltas, 0, (20, 24), torch_mask_rcnn.Limits())
    assert len(few) == len(boxes) - 3


def test_a_region_can_be_several_detections_and_scaling_comes_before_nms():
    rois = double([[10, 10, 50, 30]])
    logits, deltas = double([[2.0, 1.9, -9, 0]]), torch.zeros(1, 3, 4, dtype=torch.float64)
    deltas[0, 1] = double([1, 0, 0, 0])  # a tenth of the width
    limits = torch_mask_rcnn.Limits()
    boxes, scores, labels = torch_mask_rcnn.choose(rois, logits, deltas, (28, 100), limits)
    assert labels.tolist() == [0, 1]
    assert maximum(boxes - double([[10, 10, 50, 28], [14, 10, 54, 28]])) < 1e-13
    assert maximum(scores - torch.softmax(logits, dim=-1)[0, :2]) == 0
    boxes, _, _ = torch_mask_rcnn.choose(rois, logits, deltas, (28, 100), limits, (2.0, 0.5))
    assert maximum(boxes - double([[5, 20, 25, 56], [7, 20, 27, 56]])) < 1e-13


@pytest.mark.parametrize("join", ["default", "lape"])
def test_the_whole_network(join):
    state, images = tensors(random_values(tiny(join), (2, 4))), draw("images", 2, 3, 32, 64)
    fpn = torch_mask_rcnn.pyramid(state, torch_mask_rcnn.backbone(state, images, join=join, **OPTIONS))
    assert [tuple(x.shape) for x in fpn] == [(2, 8, 8, 16), (2, 8, 4, 8), (2, 8, 2, 4), (2, 8, 1, 2), (2, 8, 1, 1)]
    logits, deltas = torch_mask_rcnn.rpn(state, fpn)
    limits = torch_mask_rcnn.Limits(proposals=20)
    rois, _ = torch_mask_rcnn.proposals(logits, deltas, 1, (30, 50), limits)
    assert rois.shape == (20, 4)
    assert rois[:, 2].max() <= 50
    assert rois[:, 3].max() <= 30
    assert rois.min() >= 0
    found = torch_mask_rcnn.detect(state, fpn, 1, rois, (30, 50), limits)
    count = len(found.scores)
    assert count > 0
    assert found.masks.shape == (count, 28, 28)
    # With a scale factor, boxes are divided by it; masks are read at the same places.
    other = torch_mask_rcnn.detect(state, fpn, 1, rois, (30, 50), limits, (2.0, 2.0))
    assert maximum(2 * other.boxes - found.boxes) == 0
    assert maximum(other.masks - found.masks) == 0
