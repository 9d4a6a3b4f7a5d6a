"""Multi-scale deformable attention in PyTorch, from the formulas of Zhu et al. 2021 (Deformable DETR).

Names of the module's tensors are those of fundamentalvision/Deformable-DETR. Bilinear sampling is there twice: written
out, and by PyTorch's grid_sample.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
Grid = tuple[int, int]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def reference_points(shapes: Sequence[Grid], like: Tensor) -> Tensor:
    """(Q, 2): the centres (x, y) of all pixels of all maps, row by row, in units of the map's sides."""
    points = [((j + 0.5) / w, (i + 0.5) / h) for h, w in shapes for i in range(h) for j in range(w)]
    return torch.tensor(points, dtype=like.dtype, device=like.device)


def sample_by_taps(value: Tensor, shapes: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, M*d): the weighted sum of bilinear samples of the maps of all levels.

    value (B, S, M, d), the maps one after the other; locations (B, Q, M, L, P, 2) as (x, y) in units of the map's
    sides; weights (B, Q, M, L, P). A location's pixel coordinates are loc * size - 1/2. Each of the four pixels around
    it counts by its nearness; those outside of the map count as zeros.
    """
    total, start = torch.zeros(()), 0
    locations, weights = locations.transpose(1, 2), weights.transpose(1, 2)  # (B, M, Q, ...)
    for level, (height, width) in enumerate(shapes):
        pixels = value[:, start : start + height * width].transpose(1, 2)  # (B, M, h*w, d)
        start += height * width
        x = locations[..., level, :, 0] * width - 0.5
        y = locations[..., level, :, 1] * height - 0.5
        left, top = torch.floor(x), torch.floor(y)
        for down in (0, 1):
            for right in (0, 1):
                row, column = top + down, left + right
                nearness = (y - top if down else 1 - (y - top)) * (x - left if right else 1 - (x - left))
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                index = torch.where(inside, row * width + column, 0).long()  # (B, M, Q, P)
                flat = index.flatten(2)[..., None].expand(-1, -1, -1, value.shape[-1])
                tap = pixels.gather(2, flat).unflatten(2, index.shape[2:])  # (B, M, Q, P, d)
                share = weights[..., level, :] * nearness * inside
                total = total + (share[..., None] * tap).sum(dim=3)
    return total.transpose(1, 2).flatten(2)


def sample_by_grid(value: Tensor, shapes: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """The same by PyTorch's grid_sample, which takes (x, y) from -1 to 1 between the map's edges."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    total, start = torch.zeros(()), 0
    for level, (height, width) in enumerate(shapes):
        pixels = value[:, start : start + height * width]
        start += height * width
        maps = pixels.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        places = 2 * locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2) - 1
        taps = functional.grid_sample(maps, places, mode="bilinear", padding_mode="zeros", align_corners=False)
        share = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        total = total + (taps * share).sum(dim=-1).reshape(batch, heads, channels, queries)
    return total.permute(0, 3, 1, 2).flatten(2)


Sample = Callable[[Tensor, Sequence[Grid], Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Deformable:
    """What the deformable attentions of a model have in common; `sample` is one of the two functions above."""

    heads: int = 6
    points: int = 4
    sample: Sample = sample_by_taps

    def __call__(
        self, state: State, name: str, query: Tensor, references: Tensor, feature: Tensor, shapes: Sequence[Grid]
    ) -> Tensor:
        """query (B, Q, D) at `references` (Q, 2) looks at feature (B, S, D), the maps of `shapes` -> (B, Q, D).

        An offset is in pixels of the map it is for; the softmax is over all points of all levels of a head.
        """
        lead, levels = (*query.shape[:2], self.heads), len(shapes)
        value = linear(state, f"{name}.value_proj", feature).unflatten(-1, (self.heads, -1))
        offsets = linear(state, f"{name}.sampling_offsets", query).reshape(*lead, levels, self.points, 2)
        logits = linear(state, f"{name}.attention_weights", query).reshape(*lead, levels * self.points)
        weights = torch.softmax(logits, dim=-1).reshape(*lead, levels, self.points)
        sides = torch.tensor([(w, h) for h, w in shapes], dtype=query.dtype, device=query.device)
        locations = references[:, None, None, None] + offsets / sides[:, None]
        return linear(state, f"{name}.output_proj", self.sample(value, shapes, locations, weights))
