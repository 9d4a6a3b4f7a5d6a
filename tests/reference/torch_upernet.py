"""An independent UperNet over ViT-Adapter in PyTorch, from the formulas of Xiao et al. 2018 and MMSegmentation.

Names are those of MMSegmentation's models: `backbone.*` (torch_vit_adapter.py), `decode_head.*`, `auxiliary_head.*`.
Dropout is off. It computes in the dtype of the weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tests.reference.torch_vit_adapter import Mode, State, conv_norm_relu, vit_adapter

POOLS = (1, 2, 3, 6)
IGNORED = 255
AUX_WEIGHT = 0.4


def adaptive_pool(x: Tensor, bins: int) -> Tensor:
    """(B, C, H, W) -> (B, C, bins, bins): bin i is the mean of rows floor(i H / bins) to ceil((i + 1) H / bins) - 1.

    Bins overlap where `bins` does not divide H; with fewer rows than bins a row is in several.
    """
    height, width = x.shape[2:]

    def span(i: int, size: int) -> slice:
        return slice(i * size // bins, -(-(i + 1) * size // bins))

    rows = []
    for i in range(bins):
        row = [x[:, :, span(i, height), span(j, width)].mean(dim=(2, 3)) for j in range(bins)]
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def conv_module(state: State, name: str, x: Tensor, mode: Mode) -> Tensor:
    return conv_norm_relu(state, f"{name}.conv", f"{name}.bn", x, 1, mode)


def classify(state: State, name: str, x: Tensor) -> Tensor:
    return functional.conv2d(x, state[f"{name}.conv_seg.weight"], state[f"{name}.conv_seg.bias"])


def decode(state: State, maps: Sequence[Tensor], mode: Mode) -> Tensor:
    """The logits (B, K, h, w) at 1/4: pyramid pooling of the smallest map, then a feature pyramid, all put together."""
    top, pooled = maps[3], [maps[3]]
    for i, bins in enumerate(POOLS):
        found = conv_module(state, f"decode_head.psp_modules.{i}.1", adaptive_pool(top, bins), mode)
        pooled.append(resize(found, top.shape[2:]))
    merged = [conv_module(state, f"decode_head.lateral_convs.{i}", maps[i], mode) for i in range(3)]
    merged.append(conv_module(state, "decode_head.bottleneck", torch.cat(pooled, dim=1), mode))
    for i in (2, 1, 0):
        merged[i] = merged[i] + resize(merged[i + 1], merged[i].shape[2:])
    levels = [conv_module(state, f"decode_head.fpn_convs.{i}", merged[i], mode) for i in range(3)] + merged[3:]
    levels = levels[:1] + [resize(level, levels[0].shape[2:]) for level in levels[1:]]
    fused = conv_module(state, "decode_head.fpn_bottleneck", torch.cat(levels, dim=1), mode)
    return classify(state, "decode_head", fused)


def auxiliary(state: State, maps: Sequence[Tensor], mode: Mode) -> Tensor:
    """The auxiliary head's logits (B, K, h, w) at 1/16."""
    return classify(state, "auxiliary_head", conv_module(state, "auxiliary_head.convs.0", maps[2], mode))


def upernet(
    state: State,
    images: Tensor,
    *,
    depth: int,
    heads: int,
    variant: str = "segmentation",
    train: bool = False,
    statistics: State | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K, H, W) of the images' pixels, those at 1/4 that they are resized from, the auxiliary ones at 1/16.

    `options` are those of `vit_adapter`; `statistics` gets, in training, the running ones after this batch.
    """
    backbone = {n.removeprefix("backbone."): value for n, value in state.items() if n.startswith("backbone.")}
    inner: State = {}
    maps = vit_adapter(
        backbone, images, depth=depth, heads=heads, variant=variant, train=train, statistics=inner, **options
    )
    mode = Mode(train, {} if statistics is None else statistics)
    mode.statistics.update({f"backbone.{name}": value for name, value in inner.items()})
    masks = decode(state, maps, mode)
    return resize(masks, images.shape[2:]), masks, auxiliary(state, maps, mode)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all pixels of -log softmax at the label; ignored ones (255) count as pixels and add nothing."""
    kept = labels != IGNORED
    log_likelihood = torch.log_softmax(logits, dim=1).gather(1, torch.where(kept, labels, 0)[:, None])[:, 0]
    return -(log_likelihood * kept).sum() / labels.numel()


def losses(masks: Tensor, aux: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(total, decode head's, auxiliary head's before its weight of 0.4); both heads' logits at the size of labels."""
    size = labels.shape[1:]
    first, second = cross_entropy(resize(masks, size), labels), cross_entropy(resize(aux, size), labels)
    return first + AUX_WEIGHT * second, first, second
