"""What of big_vision's ViT is compared with torch_big_vision.py: numpy only."""

import dataclasses
import math

import numpy as np

from tests.reference import cases


@dataclasses.dataclass(frozen=True)
class BigVisionCase:
    """One tiny model, in big_vision's words."""

    pool: str = "gap"
    posemb: str = "learn"
    join: str = "lape"
    pe_norm: str = "layernorm"
    cls_pe: bool = False
    rep_size: int | bool = False
    classes: int | None = 3
    image: tuple[int, int] = (8, 12)
    patch: tuple[int, int] = (4, 4)
    width: int = 16
    depth: int = 2
    heads: int = 2
    hidden: int = 24
    batch: int = 2

    @property
    def name(self) -> str:
        options = {"cls_pe": self.cls_pe, "rep": self.rep_size, "headless": self.classes is None}
        kind = self.pe_norm if self.has_pe_norm and self.pe_norm != "layernorm" else ""
        return "-".join(filter(None, [self.pool, self.posemb, self.join, kind, *(k for k, v in options.items() if v)]))

    @property
    def has_pe_norm(self) -> bool:
        return self.join in ("lape", "lape_sharing")

    @property
    def grid(self) -> tuple[int, int]:
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]


CASES = [
    *(BigVisionCase(join=join) for join in ("default", "shared", "unshared", "lape_sharing", "lape")),
    *(BigVisionCase(pool="tok", join=join) for join in ("default", "shared", "unshared", "lape_sharing", "lape")),
    *(BigVisionCase(pool="tok", join=join, cls_pe=True) for join in ("default", "unshared", "lape")),
    *(BigVisionCase(pool="map", join=join) for join in ("default", "lape")),
    *(BigVisionCase(posemb="sincos2d", pool=pool, join="lape") for pool in ("gap", "tok")),
    BigVisionCase(posemb="sincos2d", join="default"),
    BigVisionCase(pool="0"),
    BigVisionCase(pool="none"),
    BigVisionCase(pe_norm="vector_norm", pool="tok"),
    BigVisionCase(rep_size=True),
    BigVisionCase(pool="map", rep_size=10, classes=None),
]


def shapes(case: BigVisionCase) -> dict[str, tuple[int, ...]]:
    """The parameters by big_vision's names, blocks apart; those of LaPE are `pe_norm`."""
    width, tokens = case.width, math.prod(case.grid) + case.cls_pe
    found: dict[str, tuple[int, ...]] = {"embedding/kernel": (*case.patch, 3, width), "embedding/bias": (width,)}
    if case.posemb == "learn":
        found["pos_embedding"] = (case.depth if case.join == "unshared" else 1, tokens, width)
    if case.pool == "tok":
        found["cls"] = (1, 1, width)
    for layer in range(case.depth):
        block = _norm("LayerNorm_0", width) | _norm("LayerNorm_1", width)
        block |= _attention(case) | _mlp(case)
        if case.has_pe_norm:
            scale, bias = cases.PE_NORM_PARAMETERS[case.pe_norm]
            block |= {"pe_norm/scale": (width,)} if scale else {}
            block |= {"pe_norm/bias": (width,)} if bias else {}
        found |= {f"Transformer/encoderblock_{layer}/{name}": shape for name, shape in block.items()}
    found |= _norm("Transformer/encoder_norm", width)
    if case.pool == "map":
        head = _norm("LayerNorm_0", width) | _attention(case) | _mlp(case) | {"probe": (1, 1, width)}
        found |= {f"MAPHead_0/{name}": shape for name, shape in head.items()}
    features = width
    if case.rep_size:
        features = width if case.rep_size is True else case.rep_size
        found |= {"pre_logits/kernel": (width, features), "pre_logits/bias": (features,)}
    if case.classes:
        found |= {"head/kernel": (features, case.classes), "head/bias": (case.classes,)}
    return found


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def _attention(case: BigVisionCase) -> dict[str, tuple[int, ...]]:
    width, each = case.width, (case.heads, case.width // case.heads)
    found: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        found |= {f"{part}/kernel": (width, *each), f"{part}/bias": each}
    found |= {"out/kernel": (*each, width), "out/bias": (width,)}
    return {f"MultiHeadDotProductAttention_0/{name}": shape for name, shape in found.items()}


def _mlp(case: BigVisionCase) -> dict[str, tuple[int, ...]]:
    first = {"Dense_0/kernel": (case.width, case.hidden), "Dense_0/bias": (case.hidden,)}
    second = {"Dense_1/kernel": (case.hidden, case.width), "Dense_1/bias": (case.width,)}
    return {f"MlpBlock_0/{name}": shape for name, shape in (first | second).items()}


def weights(case: BigVisionCase) -> dict[str, np.ndarray]:
    """Random float64 values in which nothing is zero, one or symmetric."""
    return {name: _draw(name, shape) for name, shape in shapes(case).items()}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draw, leaf = cases.uniform(name, shape), name.split("/")[-1]
    if leaf == "scale":
        return 1.0 + 0.3 * draw
    if leaf == "bias":
        return 0.2 * draw
    if leaf != "kernel":  # table, class token, probe
        return 0.5 * draw
    inputs = shape[:1] if name.split("/")[-2] in ("query", "key", "value") else shape[:-1]
    return draw / math.sqrt(math.prod(inputs))


def images(case: BigVisionCase) -> np.ndarray:
    return cases.uniform("images", (case.batch, *case.image, 3))


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """The loss whose gradients are compared is sum(logits * cotangent)."""
    return cases.uniform("cotangent", shape)
