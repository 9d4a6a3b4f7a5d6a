"""Names and shapes of ViT-Adapter's and its UperNet's tensors, and random values for them: numpy only.

Names, shapes and order are those of the state dicts of czczup/ViT-Adapter (a `pe_norm` of LaPE stands before `norm1`).
"""

import dataclasses
import math

import numpy as np

from tests.reference.cases import uniform

BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
GROUPS = 4  # of blocks, each between an injector and an extractor
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes depend on; the defaults are ViT-Adapter-Ti and ADE20K's UperNet."""

    width: int = 192
    depth: int = 12
    join: str = "default"
    table_grid: tuple[int, int] = (14, 14)
    mlp_ratio: float = 4.0
    prior_width: int = 64
    deform_heads: int = 6
    points: int = 4
    classes: int = 150
    head_width: int = 512
    aux_width: int = 256
    rope: str | None = None


def tiny(join: str = "default") -> Sizes:
    """Two blocks a group, two heads; `random_state` needs `deform_heads=2`."""
    small = {"width": 16, "depth": 8, "table_grid": (3, 3), "prior_width": 8, "head_width": 8, "aux_width": 8}
    return Sizes(join=join, classes=5, deform_heads=2, points=3, mlp_ratio=2.0, **small)


def learned(shapes: Shapes) -> Shapes:
    """Those that are not batch statistics."""
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] not in BATCH_STATISTICS}


def vit_adapter_shapes(sizes: Sizes) -> Shapes:
    """The back-bone's tensors, batch statistics included."""
    width, prior, rows = sizes.width, sizes.prior_width, 1 + math.prod(sizes.table_grid)
    found: Shapes = {"pos_embed": (1, rows, width), "level_embed": (3, width)}
    if sizes.rope == "rope_mixed":
        found["freqs"] = (2, sizes.depth, width // 2)
    found |= _layer("patch_embed.proj", width, 3, 16, 16)
    for layer in range(sizes.depth):
        found |= _block(f"blocks.{layer}", sizes)
    for conv, inputs in ((0, 3), (3, prior), (6, prior)):
        found |= _conv_and_norm(f"spm.stem.{conv}", f"spm.stem.{conv + 1}", prior, inputs, 3)
    for level, (outputs, inputs) in {2: (2, 1), 3: (4, 2), 4: (4, 4)}.items():
        name = f"spm.conv{level}"
        found |= _conv_and_norm(f"{name}.0", f"{name}.1", outputs * prior, inputs * prior, 3)
    for level, inputs in {1: 1, 2: 2, 3: 4, 4: 4}.items():
        found |= _layer(f"spm.fc{level}", width, inputs * prior, 1, 1)
    for group in range(GROUPS):
        name = f"interactions.{group}"
        found[f"{name}.injector.gamma"] = (width,)
        found |= _deformable(f"{name}.injector", 3, sizes) | _extractor(f"{name}.extractor", sizes)
    for extra in (0, 1):
        found |= _extractor(f"interactions.{GROUPS - 1}.extra_extractors.{extra}", sizes)
    found |= {"up.weight": (width, width, 2, 2), "up.bias": (width,)}
    for level in (1, 2, 3, 4):
        found |= _batch_norm(f"norm{level}", width)
    return found


def upernet_shapes(sizes: Sizes) -> Shapes:
    """The back-bone's tensors under `backbone.`, then the two heads'."""
    width, head = sizes.width, sizes.head_width
    found = {f"backbone.{name}": shape for name, shape in vit_adapter_shapes(sizes).items()}
    found |= _layer("decode_head.conv_seg", sizes.classes, head, 1, 1)
    modules = {f"psp_modules.{scale}.1": (width, 1) for scale in range(4)}
    modules["bottleneck"] = (width + 4 * head, 3)
    modules |= {f"lateral_convs.{level}": (width, 1) for level in range(3)}
    modules |= {f"fpn_convs.{level}": (head, 3) for level in range(3)}
    modules["fpn_bottleneck"] = (4 * head, 3)
    for name, (inputs, kernel) in modules.items():
        found |= _conv_and_norm(f"decode_head.{name}.conv", f"decode_head.{name}.bn", head, inputs, kernel)
    found |= _layer("auxiliary_head.conv_seg", sizes.classes, sizes.aux_width, 1, 1)
    name = "auxiliary_head.convs.0"
    return found | _conv_and_norm(f"{name}.conv", f"{name}.bn", sizes.aux_width, width, 3)


def _layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _batch_norm(name: str, width: int) -> Shapes:
    shapes = dict.fromkeys(("weight", "bias", *BATCH_STATISTICS), (width,))
    return {f"{name}.{leaf}": () if leaf == "num_batches_tracked" else shape for leaf, shape in shapes.items()}


def _conv_and_norm(conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    return {f"{conv}.weight": (outputs, inputs, kernel, kernel)} | _batch_norm(norm, outputs)


def _block(name: str, sizes: Sizes) -> Shapes:
    width, hidden = sizes.width, int(sizes.width * sizes.mlp_ratio)
    found: Shapes = {f"{name}.gamma1": (width,), f"{name}.gamma2": (width,)}
    if sizes.join == "lape":
        found |= _layer(f"{name}.pe_norm", width)
    found |= _layer(f"{name}.norm1", width)
    found |= _layer(f"{name}.attn.qkv", 3 * width, width) | _layer(f"{name}.attn.proj", width, width)
    found |= _layer(f"{name}.norm2", width)
    return found | _layer(f"{name}.mlp.fc1", hidden, width) | _layer(f"{name}.mlp.fc2", width, hidden)


def _deformable(name: str, levels: int, sizes: Sizes) -> Shapes:
    width, samples = sizes.width, sizes.deform_heads * levels * sizes.points
    found = _layer(f"{name}.query_norm", width) | _layer(f"{name}.feat_norm", width)
    found |= _layer(f"{name}.attn.sampling_offsets", 2 * samples, width)
    found |= _layer(f"{name}.attn.attention_weights", samples, width)
    return found | _layer(f"{name}.attn.value_proj", width, width) | _layer(f"{name}.attn.output_proj", width, width)


def _extractor(name: str, sizes: Sizes) -> Shapes:
    width, hidden = sizes.width, sizes.width // 4
    found = _deformable(name, 1, sizes) | _layer(f"{name}.ffn.fc1", hidden, width)
    found |= _layer(f"{name}.ffn.dwconv.dwconv", hidden, 1, 3, 3) | _layer(f"{name}.ffn.fc2", width, hidden)
    return found | _layer(f"{name}.ffn_norm", width)


SPREAD = 0.27  # of the sampling offsets, in sides of the map; puts about 37 % of the points outside of it


def random_state(shapes: Shapes, grid: tuple[int, int], seed: int = 0, deform_heads: int = 6) -> dict[str, np.ndarray]:
    """Random float64 values (`num_batches_tracked`: int64), none of them zero, one or symmetric.

    `grid` is the map of 1/16 of the images they are for: with it, about 37 % of the sampling points of the deformable
    attentions lie outside of the maps.
    """
    return {name: _value(name, shape, grid, seed, deform_heads) for name, shape in shapes.items()}


def _value(name: str, shape: tuple[int, ...], grid: tuple[int, int], seed: int, deform_heads: int) -> np.ndarray:
    draw = uniform(name, shape, seed)
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.array(7)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):  # of normalisations
        return 1.0 + 0.3 * draw
    if leaf in ("gamma", "gamma1", "gamma2"):
        return 0.5 + 0.2 * draw
    if leaf in ("level_embed", "freqs"):
        return draw
    if leaf == "pos_embed":
        return 0.5 * draw
    if ".sampling_offsets." in name:
        levels = 3 if ".injector." in name else 1
        sides = _sides(grid, levels).reshape(1, levels, 1, 2)
        share = 0.8 if leaf == "bias" else 0.6 / math.sqrt(shape[1])
        offsets = draw.reshape(deform_heads, levels, -1, 2, *shape[1:])
        return (SPREAD * share * offsets * sides.reshape(sides.shape + (1,) * len(shape[1:]))).reshape(shape)
    if leaf in ("bias", "running_mean"):
        return 0.2 * draw
    fan_in = shape[0] if name.endswith("up.weight") else math.prod(shape[1:])
    return draw / math.sqrt(fan_in)


def _sides(grid: tuple[int, int], levels: int) -> np.ndarray:
    """(levels, 2): width and height of the maps that an injector (3 levels) or an extractor (1 level) looks at."""
    height, width = grid
    return np.array([(width * scale, height * scale) for scale in ((2, 1, 0.5) if levels == 3 else (1,))])
