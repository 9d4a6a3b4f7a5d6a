"""An independent ViT of big_vision with LaPE, in PyTorch float64, as functions of its parameters by name.

From the papers (arXiv:2205.01580; MAP head: arXiv:2106.04560; LaPE: ICCV 2023) and big_vision's names; one head, one
patch, one layer at a time.
"""

import math

import numpy as np
import torch
from torch import Tensor

from tests.reference.big_vision_cases import BigVisionCase, cotangent
from tests.reference.torch_vit import normalise, sincos_2d_moco

Weights = dict[str, Tensor]


def layer_norm(x: Tensor, p: Weights, name: str) -> Tensor:
    return p[f"{name}/scale"] * normalise(x, 1e-6) + p[f"{name}/bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x: Tensor, source: Tensor, p: Weights, name: str) -> Tensor:
    """Of the rows of x (B, N, D) to those of `source` (B, M, D)."""
    name = f"{name}/MultiHeadDotProductAttention_0"
    heads, head_dim = p[f"{name}/query/bias"].shape
    result = p[f"{name}/out/bias"]
    for head in range(heads):
        q, k, v = (
            given @ p[f"{name}/{part}/kernel"][:, head] + p[f"{name}/{part}/bias"][head]
            for part, given in (("query", x), ("key", source), ("value", source))
        )
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(head_dim), dim=-1)
        result = result + weights @ v @ p[f"{name}/out/kernel"][head]
    return result


def mlp(x: Tensor, p: Weights, name: str) -> Tensor:
    name = f"{name}/MlpBlock_0"
    hidden = gelu(x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"])
    return hidden @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]


def pe_norm(case: BigVisionCase, w: Tensor, p: Weights, name: str) -> Tensor:
    """The function of the PE; of the kinds in the paper's Table 8, those that the cases have."""
    if case.pe_norm == "layernorm":
        return layer_norm(w, p, f"{name}/pe_norm")
    assert case.pe_norm == "vector_norm"
    return p[f"{name}/pe_norm/scale"] * normalise(w, 1e-6)


def stem(case: BigVisionCase, p: Weights, images: Tensor) -> Tensor:
    """(B, N, D): each patch times the kernel, row by row."""
    (rows, columns), (height, width) = case.grid, case.patch
    patches = []
    for r in range(rows):
        for c in range(columns):
            patch = images[:, r * height : (r + 1) * height, c * width : (c + 1) * width]
            patches.append(torch.einsum("bijc,ijcd->bd", patch, p["embedding/kernel"]) + p["embedding/bias"])
    return torch.stack(patches, dim=1)


def forward(case: BigVisionCase, p: Weights, images: Tensor) -> Weights:
    x = stem(case, p, images)
    if case.pool == "tok":
        x = torch.cat([p["cls"].expand(len(images), -1, -1), x], dim=1)
    tables = p["pos_embedding"] if case.posemb == "learn" else sincos_2d_moco(case.grid, case.width, 0)[None]

    def with_class_row(rows: Tensor) -> Tensor:
        """One row per token: the class token has no PE, unless the table has a row for it."""
        return rows if len(rows) == x.shape[1] else torch.cat([torch.zeros_like(rows[:1]), rows])

    w, tokens, delivered = tables[0], [], []
    if case.join == "default":
        x = x + with_class_row(w)
    for layer in range(case.depth):
        name = f"Transformer/encoderblock_{layer}"
        p_l = None
        if case.join in ("shared", "unshared"):
            p_l = with_class_row(tables[layer] if case.join == "unshared" else w)
            x = x + p_l
        fed = layer_norm(x, p, f"{name}/LayerNorm_0")
        if case.has_pe_norm:
            q = pe_norm(case, w, p, name)
            w = q if case.join == "lape" else w
            p_l = with_class_row(q)
            fed = fed + p_l
        x = x + attention(fed, fed, p, name)
        x = x + mlp(layer_norm(x, p, f"{name}/LayerNorm_1"), p, name)
        tokens.append(x)
        if p_l is not None:
            delivered.append(p_l)
    encoded = layer_norm(x, p, "Transformer/encoder_norm")
    answer = {"tokens": torch.stack(tokens)} | ({"pe": torch.stack(delivered)} if delivered else {})
    return answer | head(case, p, encoded)


def head(case: BigVisionCase, p: Weights, encoded: Tensor) -> Weights:
    patches = encoded[:, 1:] if case.pool == "tok" else encoded
    if case.pool == "gap":
        pooled = encoded.mean(dim=1)
    elif case.pool == "map":
        a = attention(p["MAPHead_0/probe"].expand(len(encoded), -1, -1), encoded, p, "MAPHead_0")
        pooled = (a + mlp(layer_norm(a, p, "MAPHead_0/LayerNorm_0"), p, "MAPHead_0"))[:, 0]
    else:
        pooled = encoded if case.pool == "none" else encoded[:, 0]
    maps = patches.reshape(len(encoded), *case.grid, -1)
    if case.rep_size:
        pooled, maps = (torch.tanh(x @ p["pre_logits/kernel"] + p["pre_logits/bias"]) for x in (pooled, maps))
    answer = {"pre_logits_2d": maps, "logits": pooled}
    if case.classes:
        answer["pre_logits"] = pooled
        answer["logits"], answer["logits_2d"] = (x @ p["head/kernel"] + p["head/bias"] for x in (pooled, maps))
    return answer


def answer(case: BigVisionCase, weights: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, and as `grad NAME` the gradients of sum(logits * cotangent)."""
    parameters = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in weights.items()}
    found = forward(case, parameters, torch.from_numpy(images))
    (found["logits"] * torch.from_numpy(cotangent(found["logits"].shape))).sum().backward()
    gradients = {f"grad {name}": parameter.grad.numpy() for name, parameter in parameters.items()}
    return {name: value.detach().numpy() for name, value in found.items()} | gradients
