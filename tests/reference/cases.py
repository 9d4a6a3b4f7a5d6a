"""What the parity tests compare, and the random numbers they feed in: numpy only, so that goldens need no PyTorch.

A `Case` fixes one model. Its weights, images and loss cotangent are pure functions of the case: every tensor is drawn
from a PCG64 stream seeded by the tensor's own name. Only uniform doubles are used, because they are the raw bits of the
stream, which numpy keeps the same in every release; its normal sampler may change. The answers of `torch_vit.py` are
stored by `tests/models/golden/make.py`.
"""

import dataclasses
import math
import re
import zlib

import numpy as np

ABSOLUTE = ("learnable", "sincos_1d", "sincos_2d")
MOCO = "sincos_2d_moco"  # for the joinings a frozen table like the others
PE_NORMS = ("layernorm", "norm", "scalar", "vector", "affine", "scalar_norm", "vector_norm", "identity")
# The parameters of each `pe_norm`: the shape of its weight (None: it has none) and whether it has a bias.
PE_NORM_PARAMETERS = {
    "layernorm": ("vector", True),
    "norm": (None, False),
    "scalar": ("scalar", False),
    "vector": ("vector", False),
    "affine": ("vector", True),
    "scalar_norm": ("scalar", False),
    "vector_norm": ("vector", False),
    "identity": (None, False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model to compare; `stream_scale` shrinks all that is written to the residual stream (_STREAM below)."""

    pe: str = "learnable"
    peg_blocks: int = 1
    join: str = "lape"
    pe_norm: str = "layernorm"
    image: tuple[int, int] = (12, 20)
    patch: tuple[int, int] = (4, 4)
    channels: int = 3
    width: int = 32
    depth: int = 3
    heads: int = 2
    mlp_ratio: float = 4.0
    classes: int = 5
    pool: str = "token"
    distilled: bool = False
    layer_scale: bool = False
    ln_eps: float = 1e-6
    stream_scale: float = 1.0
    batch: int = 2
    label: str = ""

    @property
    def name(self) -> str:
        """Test id and golden key, such as lape-sincos_2d-layernorm."""
        parts = [self.join, self.pe, self.pe_norm if self.has_pe_norm else "", self.label]
        return "-".join(part for part in parts if part)

    @property
    def absolute(self) -> str | None:
        """The absolute table, or None."""
        head = self.pe.split("+")[0]
        return head if head in (*ABSOLUTE, MOCO) else None

    @property
    def relative(self) -> bool:
        return "relative" in self.pe.split("+")

    @property
    def rope(self) -> str | None:
        """The kind of rotary position embedding, or None."""
        return next((part for part in self.pe.split("+") if part.startswith("rope")), None)

    @property
    def pegs(self) -> int:
        """How many blocks are followed by a positional encoding generator."""
        return self.peg_blocks if self.pe.split("+")[-1] == "peg" else 0

    @property
    def has_pe_norm(self) -> bool:
        return self.join in ("lape", "lape_sharing", "pvg", "mpvg")

    @property
    def first_pe_norm(self) -> int:
        """The first block that has one, if any have."""
        return int(self.join in ("pvg", "mpvg"))

    @property
    def has_gradients(self) -> bool:
        """All but the seven rarer pe_norms beside a relative bias, which meets them nowhere: to save time."""
        return not (self.relative and self.has_pe_norm) or self.pe_norm == "layernorm"

    @property
    def grid(self) -> tuple[int, int]:
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def extra_tokens(self) -> int:
        return int(self.pool == "token") + int(self.distilled)

    @property
    def rows(self) -> int:
        """N': the length of the sequence, and of every absolute table."""
        return self.extra_tokens + self.grid[0] * self.grid[1]


def every_combination() -> list[Case]:
    """Every PE x joining x pe_norm that exists, tiny, on a 3 x 5 grid."""
    cases = [Case(pe="none", join="default"), Case(pe="relative", join="default")]
    for pe in (*ABSOLUTE, *(f"{table}+relative" for table in ABSOLUTE)):
        cases += [Case(pe=pe, join="default"), Case(pe=pe, join="shared")]
        if pe.startswith("learnable"):
            cases.append(Case(pe=pe, join="unshared"))
        cases += [Case(pe=pe, join=join, pe_norm=kind) for join in ("lape_sharing", "lape") for kind in PE_NORMS]
    return cases


def variations() -> list[Case]:
    """The options that are orthogonal to the joining: distillation, pooling, layer scale, shapes, epsilon.

    The images are such that every sequence has the 16 rows of the other cases, and no operation needs compiling anew.
    """
    pairs = [("learnable", "default"), ("learnable", "lape"), ("sincos_1d", "lape"), ("sincos_2d", "lape")]
    cases = []
    for pe, join in [*pairs, ("learnable", "unshared"), ("relative", "default")]:
        cases.append(Case(pe=pe, join=join, distilled=True, image=(8, 28), label="distilled"))
        cases.append(Case(pe=pe, join=join, pool="gap", image=(8, 32), label="gap"))
    for pe, join in pairs[:2]:
        cases.append(Case(pe=pe, join=join, layer_scale=True, label="layer_scale"))
        cases.append(Case(pe=pe, join=join, stream_scale=1e-3, label="small"))
        cases.append(Case(pe=pe, join=join, stream_scale=1e-3, ln_eps=1e-5, label="small_eps5"))
    cases += [Case(pe=MOCO, join="default"), Case(pe=MOCO, join="lape", pool="gap", image=(8, 32), label="gap")]
    cases += [*with_pegs(), *with_position_at_the_end()]
    tall = {"image": (20, 6), "patch": (4, 2), "channels": 1, "label": "oblong_patches"}
    return [*cases, Case(pe="sincos_2d", **tall), Case(pe="relative", join="default", **tall)]


def with_pegs() -> list[Case]:
    """Positional encoding generators, alone and beside other position embeddings, also after the last block."""
    return [
        Case(pe="peg", join="default"),
        Case(pe="peg", join="default", peg_blocks=3, pool="gap", image=(8, 32), label="gap"),
        Case(pe="learnable+peg", join="default", distilled=True, image=(8, 28), label="distilled"),
        Case(pe="learnable+peg", join="lape", peg_blocks=2),
        Case(pe="learnable+peg", join="unshared", peg_blocks=2),
        Case(pe="sincos_2d+peg", join="lape"),
        Case(pe="sincos_1d+peg", join="shared"),
        Case(pe="learnable+relative+peg", join="lape_sharing", peg_blocks=2),
    ]


def with_position_at_the_end() -> list[Case]:
    """PVG and MPVG, which have no class token."""
    gap = {"pool": "gap", "image": (8, 32)}
    return [
        Case(join="pvg", **gap),
        Case(join="mpvg", **gap),
        Case(pe="sincos_1d+relative", join="pvg", pe_norm="scalar_norm", **gap),
        Case(pe="sincos_2d+peg", join="mpvg", pe_norm="affine", **gap),
        Case(pe="learnable+relative", join="mpvg", layer_scale=True, label="layer_scale", **gap),
    ]


def realistic() -> list[Case]:
    """DeiT-Ti's width and depth on 64 x 64 images: the size at which float32 and bfloat16 are judged."""
    size = {"image": (64, 64), "patch": (16, 16), "width": 192, "depth": 12, "heads": 3, "classes": 10, "batch": 8}
    return [Case(join=join, label="realistic", **size) for join in ("default", "lape")]


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the trainable tensors, in DeiT's / official LaPE's state-dict names."""
    width, hidden = case.width, int(case.width * case.mlp_ratio)
    found: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (width, case.channels, *case.patch)}
    found["patch_embed.proj.bias"] = (width,)
    if case.pool == "token":
        found["cls_token"] = (1, 1, width)
    if case.distilled:
        found["dist_token"] = (1, 1, width)
    if case.absolute == "learnable":
        tables = [f"pos_embed{layer}" for layer in range(case.depth)] if case.join == "unshared" else ["pos_embed"]
        found |= dict.fromkeys(tables, (1, case.rows, width))
    if case.rope == "rope_mixed":
        found["freqs"] = (2, case.depth, width // 2)
    for layer in range(case.depth):
        block = _norm("pe_norm", case) if case.has_pe_norm and layer >= case.first_pe_norm else {}
        block |= {f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        block |= _linear("attn.qkv", 3 * width, width) | _linear("attn.proj", width, width)
        block |= _linear("mlp.fc1", hidden, width) | _linear("mlp.fc2", width, hidden)
        if case.relative:
            block["attn.relative_position_bias_table"] = (math.prod(2 * side - 1 for side in case.grid), case.heads)
        if case.layer_scale:
            block |= {"gamma_1": (width,), "gamma_2": (width,)}
        found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    for block in range(case.pegs):
        found |= {f"pos_block.{block}.proj.0.weight": (width, 1, 3, 3), f"pos_block.{block}.proj.0.bias": (width,)}
    if case.join == "mpvg":
        found |= _norm("pe_norm_last", case)
    found |= {"norm.weight": (width,), "norm.bias": (width,)} | _linear("head", case.classes, width)
    return found | (_linear("head_dist", case.classes, width) if case.distilled else {})


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, case: Case) -> dict[str, tuple[int, ...]]:
    weight, bias = PE_NORM_PARAMETERS[case.pe_norm]
    found: dict[str, tuple[int, ...]] = {}
    if weight is not None:
        found[f"{name}.weight"] = (case.width,) if weight == "vector" else ()
    return found | ({f"{name}.bias": (case.width,)} if bias else {})


def uniform(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Uniform float64 numbers of mean 0 and variance 1: for a name always the same, whatever else is drawn."""
    stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    return (stream.random(shape) - 0.5) * math.sqrt(12.0)


# Writers to the residual stream. Made small, they bring every LayerNorm's input near sqrt(eps), so that eps decides.
_STREAM = re.compile(r"cls_token|dist_token|pos_embed\d*|patch_embed\.proj\..*|.*(attn\.proj|mlp\.fc2)\..*")


def random_state_dict(shapes: dict[str, tuple[int, ...]], seed: int = 0, stream_scale: float = 1.0) -> dict:
    """Random float64 weights: nothing is zero, one or symmetric, so no mistake can hide behind an initial value."""
    weights = {}
    for name, shape in shapes.items():
        draw = uniform(name, shape, seed)
        if re.fullmatch(r"(.*\.)?(norm|norm1|norm2|pe_norm|pe_norm_last)\.weight", name):
            value = 1.0 + 0.3 * draw
        elif name.endswith((".gamma_1", ".gamma_2")):
            value = 0.5 + 0.2 * draw
        elif name.endswith((".relative_position_bias_table", "freqs")):
            value = draw
        elif name.startswith(("pos_embed", "cls_token", "dist_token")):
            value = 0.5 * draw
        elif name.endswith(".bias"):
            value = 0.2 * draw
        else:  # matrices and the patch convolution: unit gain
            value = draw / math.sqrt(math.prod(shape[1:]))
        weights[name] = value * stream_scale if _STREAM.fullmatch(name) else value
    return weights


def weights(case: Case) -> dict[str, np.ndarray]:
    return random_state_dict(shapes(case), stream_scale=case.stream_scale)


def images(case: Case) -> np.ndarray:
    """(B, H, W, C), as if already normalised."""
    return uniform("images", (case.batch, *case.image, case.channels))


def cotangent(case: Case) -> np.ndarray:
    """(B, K): the loss whose gradients are compared is sum(logits * cotangent)."""
    return uniform("cotangent", (case.batch, case.classes))


def stack_layers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The per-layer tensors `blocks.{l}.x` as one (L, ...) `blocks.x`, and `pos_embed{l}` as one `pos_embed`."""
    groups: dict[str, list[np.ndarray]] = {}
    for name in sorted(tensors, key=lambda name: [int(run) for run in re.findall(r"(?<=blocks\.)\d+|\d+$", name)]):
        groups.setdefault(re.sub(r"(?<=blocks)\.\d+|(?<=pos_embed)\d+", "", name), []).append(tensors[name])
    return {name: np.stack(group) if len(group) > 1 else group[0] for name, group in groups.items()}


def sketch(name: str, value: np.ndarray, directions: int = 3) -> np.ndarray:
    """A tensor in four numbers: its 2-norm, and its products with `directions` fixed random ones.

    Two tensors that differ by d have products that differ by about |d|, so comparing these, relative to the norm, finds
    any difference but one that happens to be orthogonal to three random directions.
    """
    rows = uniform(f"sketch {name}", (directions, value.size))
    return np.append(np.linalg.norm(value), rows @ np.ravel(value))


def golden(answer: dict[str, np.ndarray]) -> np.ndarray:
    """What is stored of an answer: the logits as they are, then a sketch of all else in the order of the names."""
    others = [sketch(name, answer[name]) for name in sorted(answer) if name != "logits"]
    return np.concatenate([np.ravel(answer["logits"]), *others])
