"""An independent ViT-Adapter in PyTorch, from the formulas of Chen et al. 2023, Deformable DETR and LaPE.

Names are those of czczup/ViT-Adapter; every function takes the whole state dict and the name of its part. It computes
in the dtype of the weights. Dropout and stochastic depth are off, also in training; what `train` changes is that batch
normalisation uses the batch's statistics. Images and maps are (B, C, H, W), tokens (B, N, D), row by row.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.reference.torch_deformable import Deformable, Grid, State, linear, reference_points
from tests.reference.torch_vit import gelu, normalise, rotary_angles, rotated
from tests.reference.vit_adapter_states import BATCH_STATISTICS, GROUPS

MOMENTUM, BATCH_EPS = 0.1, 1e-5
VARIANTS = ("detection", "segmentation")


@dataclasses.dataclass
class Mode:
    """Whether the batch's statistics are used; if so, `statistics` gets the running ones after this batch."""

    train: bool = False
    statistics: State = dataclasses.field(default_factory=dict)


def tensors(state: dict[str, np.ndarray | Tensor], requires_grad: bool = False) -> State:
    """The state dict as tensors of its own; `requires_grad`: all that is learned is a leaf with a gradient."""
    found = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    for name, value in found.items():
        value.requires_grad_(requires_grad and name.rpartition(".")[2] not in BATCH_STATISTICS)
    return found


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return state[f"{name}.weight"] * normalise(x, eps) + state[f"{name}.bias"]


def batch_norm(state: State, name: str, x: Tensor, mode: Mode) -> Tensor:
    """(x - mean) / sqrt(var + eps) for each channel, over images and pixels; the running variance is the unbiased."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if mode.train:
        n = x.numel() // x.shape[1]
        if n == 1:
            raise ValueError(f"{name}: one value a channel has no variance")
        batch_mean = x.mean(dim=(0, 2, 3))
        batch_var = ((x - batch_mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
        mode.statistics[f"{name}.running_mean"] = (mean + MOMENTUM * (batch_mean - mean)).detach()
        mode.statistics[f"{name}.running_var"] = (var + MOMENTUM * (batch_var * n / (n - 1) - var)).detach()
        mode.statistics[f"{name}.num_batches_tracked"] = state[f"{name}.num_batches_tracked"] + 1
        mean, var = batch_mean, batch_var
    scale = state[f"{name}.weight"] / torch.sqrt(var + BATCH_EPS)
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


# ---- parts of the adapter


def conv_norm_relu(state: State, conv: str, norm: str, x: Tensor, stride: int, mode: Mode) -> Tensor:
    kernel = state[f"{conv}.weight"]
    x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    return torch.relu(batch_norm(state, norm, x, mode))


def spatial_prior(state: State, images: Tensor, mode: Mode) -> list[Tensor]:
    """The maps c1 (1/4), c2 (1/8), c3 (1/16), c4 (1/32), all of the ViT's width."""
    x = images
    for conv, stride in ((0, 2), (3, 1), (6, 1)):
        x = conv_norm_relu(state, f"spm.stem.{conv}", f"spm.stem.{conv + 1}", x, stride, mode)
    maps = [functional.max_pool2d(x, 3, stride=2, padding=1)]
    for level in (2, 3, 4):
        maps.append(conv_norm_relu(state, f"spm.conv{level}.0", f"spm.conv{level}.1", maps[-1], 2, mode))
    names = [f"spm.fc{level}" for level in (1, 2, 3, 4)]
    return [
        functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])
        for name, x in zip(names, maps, strict=True)
    ]


def to_tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


def split(tokens: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """The maps (B, D, h, w) whose tokens stand one after the other."""
    parts = tokens.split([h * w for h, w in grids], dim=1)
    return [to_maps(part, grid) for part, grid in zip(parts, grids, strict=True)]


def conv_ffn(state: State, name: str, x: Tensor, grids: Sequence[Grid]) -> Tensor:
    hidden = linear(state, f"{name}.fc1", x)
    weight, bias = state[f"{name}.dwconv.dwconv.weight"], state[f"{name}.dwconv.dwconv.bias"]
    maps = [functional.conv2d(part, weight, bias, padding=1, groups=len(weight)) for part in split(hidden, grids)]
    return linear(state, f"{name}.fc2", gelu(torch.cat([to_tokens(part) for part in maps], dim=1)))


def inject(state: State, name: str, x: Tensor, c: Tensor, grids: Sequence[Grid], attend: Deformable, eps: float):
    """x + gamma * attention of the tokens x, at 1/16, to the three maps of c."""
    query, feature = layer_norm(state, f"{name}.query_norm", x, eps), layer_norm(state, f"{name}.feat_norm", c, eps)
    found = attend(state, f"{name}.attn", query, reference_points(grids[1:2], x), feature, grids)
    return x + state[f"{name}.gamma"] * found


def extract(state: State, name: str, c: Tensor, x: Tensor, grids: Sequence[Grid], attend: Deformable, eps: float):
    """c + attention of the three maps c to x, the map at 1/16; then c + ConvFFN(c)."""
    query, feature = layer_norm(state, f"{name}.query_norm", c, eps), layer_norm(state, f"{name}.feat_norm", x, eps)
    c = c + attend(state, f"{name}.attn", query, reference_points(grids, c), feature, grids[1:2])
    return c + conv_ffn(state, f"{name}.ffn", layer_norm(state, f"{name}.ffn_norm", c, eps), grids)


# ---- the ViT


def attend_to_all(qkv: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, N, 3D), rows of [q, k, v] -> (B, N, D)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    found = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1) @ v
    return found.transpose(1, 2).flatten(2)


def turned(qkv: Tensor, heads: int, grid: Grid, freqs: Tensor | None, kind: str) -> Tensor:
    """Queries and keys of each head times exp(i angle), by the place in the whole map."""
    q, k, v = qkv.chunk(3, dim=-1)
    size = q.shape[-1] // heads
    own = [None] * heads if freqs is None else freqs.chunk(heads, dim=-1)
    angles = [rotary_angles(kind, grid, size, part) for part in own]
    parts = [
        torch.cat([rotated(z, kind, a, 0) for z, a in zip(part.split(size, dim=-1), angles, strict=True)], dim=-1)
        for part in (q, k)
    ]
    return torch.cat([*parts, v], dim=-1)


def attention(
    state: State, name: str, x: Tensor, heads: int, grid: Grid, window: int | None, rope: str | None = None
) -> Tensor:
    """Of all tokens to all, or within windows; what pads the last windows has query, key and value zero, no mask."""
    qkv = linear(state, f"{name}.qkv", x)
    if rope is not None:
        layer = int(name.split(".")[1])
        qkv = turned(qkv, heads, grid, state["freqs"][:, layer] if "freqs" in state else None, rope)
    if window is None:
        return linear(state, f"{name}.proj", attend_to_all(qkv, heads))
    (height, width), rows = grid, []
    maps = functional.pad(qkv.unflatten(1, grid), (0, 0, 0, -width % window, 0, -height % window))
    for top in range(0, height, window):
        row = []
        for left in range(0, width, window):
            tokens = maps[:, top : top + window, left : left + window].flatten(1, 2)
            row.append(attend_to_all(tokens, heads).unflatten(1, (window, window)))
        rows.append(torch.cat(row, dim=2))
    return linear(state, f"{name}.proj", torch.cat(rows, dim=1)[:, :height, :width].flatten(1, 2))


def block(
    state: State,
    name: str,
    x: Tensor,
    p: Tensor | None,
    heads: int,
    grid: Grid,
    window: int | None,
    eps: float,
    rope: str | None = None,
) -> Tensor:
    """A pre-norm block with layer scale; `p` (1, N, D), if any, is added to the input of q, k and v alone."""
    inner = layer_norm(state, f"{name}.norm1", x, eps)
    inner = inner if p is None else inner + p
    x = x + state[f"{name}.gamma1"] * attention(state, f"{name}.attn", inner, heads, grid, window, rope)
    hidden = gelu(linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x, eps)))
    return x + state[f"{name}.gamma2"] * linear(state, f"{name}.mlp.fc2", hidden)


def position_embedding(state: State, table_grid: Grid | None, grid: Grid) -> Tensor:
    """(1, h*w, D): the table without the class token's row, resized; `table_grid` None: the table is a square's."""
    rows = state["pos_embed"][:, 1:]
    side = round(rows.shape[1] ** 0.5)
    maps = to_maps(rows, table_grid or (side, side))
    return to_tokens(functional.interpolate(maps, size=grid, mode="bicubic", align_corners=False))


def default_windows(depth: int, variant: str, window: int) -> list[int | None]:
    """Segmentation: none. Detection: all blocks but the last of each of the four groups."""
    group = depth // GROUPS
    return [window if variant == "detection" and (i + 1) % group else None for i in range(depth)]


def vit_adapter(
    state: State,
    images: Tensor,
    *,
    depth: int,
    heads: int,
    variant: str,
    join: str = "default",
    eps: float = 1e-6,
    windows: Sequence[int | None] | None = None,
    window: int = 14,
    table_grid: Grid | None = None,
    attend: Deformable | None = None,
    train: bool = False,
    statistics: State | None = None,
    rope: str | None = None,
) -> list[Tensor]:
    """The four maps (B, D, h, w) at 1/4, 1/8, 1/16 and 1/32 of the images, whose sides are multiples of 32.

    `windows` overrides, block by block, the side of its windows (None: global). `statistics` gets, in training, the
    running statistics after this batch. `attend` fixes heads and points of the deformable attentions. `rope` is the
    kind of rotary position embedding, if there is one.
    """
    assert variant in VARIANTS, variant
    assert depth % GROUPS == 0, depth
    assert f"blocks.{depth}.norm1.weight" not in state, depth
    assert join in ("default", "lape"), join
    assert (f"blocks.{depth - 1}.pe_norm.weight" in state) == (join == "lape"), join
    assert not any(side % 32 for side in images.shape[2:]), images.shape
    mode, attend = Mode(train, {} if statistics is None else statistics), attend or Deformable()
    windows = default_windows(depth, variant, window) if windows is None else windows
    grid = images.shape[2] // 16, images.shape[3] // 16
    grids = [(grid[0] * 2, grid[1] * 2), grid, (grid[0] // 2, grid[1] // 2)]

    first, *others = spatial_prior(state, images, mode)
    c = torch.cat([to_tokens(part) + state["level_embed"][i] for i, part in enumerate(others)], dim=1)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = to_tokens(functional.conv2d(images, weight, bias, stride=weight.shape[-1]))
    w, p = position_embedding(state, table_grid, grid), None
    if join == "default":
        x = x + w

    group, seen = depth // GROUPS, []
    for i in range(GROUPS):
        x = inject(state, f"interactions.{i}.injector", x, c, grids, attend, eps)
        for layer in range(i * group, (i + 1) * group):
            if join == "lape":
                w = p = layer_norm(state, f"blocks.{layer}.pe_norm", w, eps)
            x = block(state, f"blocks.{layer}", x, p, heads, grid, windows[layer], eps, rope)
        extras = [f"extra_extractors.{extra}" for extra in (0, 1)] if i == GROUPS - 1 else []
        for name in ("extractor", *extras):
            c = extract(state, f"interactions.{i}.{name}", c, x, grids, attend, eps)
        seen.append(to_maps(x, grid))

    maps = split(c, grids)
    maps.insert(0, functional.conv_transpose2d(maps[0], state["up.weight"], state["up.bias"], stride=2) + first)
    seen = seen if variant == "segmentation" else [seen[-1]] * GROUPS
    sizes = [part.shape[2:] for part in maps]
    added = [
        functional.interpolate(x, size=s, mode="bilinear", align_corners=False)
        for x, s in zip(seen, sizes, strict=True)
    ]
    return [batch_norm(state, f"norm{i + 1}", maps[i] + added[i], mode) for i in range(GROUPS)]
