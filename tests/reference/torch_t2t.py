"""An independent T2T-ViT in PyTorch float64: tokens by the formulas of Yuan et al. 2021 and Choromanski et al. 2021.

Names are those of yitu-opensource/T2T-ViT. The encoder is that of torch_vit.py without a bias of qkv.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import cases, torch_vit
from tests.reference.t2t_cases import T2TCase
from tests.reference.torch_vit import LayerNorm


class Performer(nn.Module):
    """Linear attention, query by query and head by one head, with a residual connection from v."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width // 2, width), requires_grad=False)
        self.kqv = nn.Linear(inputs, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1 = LayerNorm(inputs, 1e-5)
        self.norm2 = LayerNorm(width, 1e-5)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(0.1))

    def phi(self, u: Tensor) -> Tensor:
        features = [torch.exp((u * w).sum(-1) - (u**2).sum(-1) / 2) for w in self.w]
        return torch.stack(features, dim=-1) / math.sqrt(len(self.w))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        kernel = self.phi(q) @ self.phi(k).transpose(1, 2)  # (B, N, N), which the formula avoids
        # The 1e-8 stands beside the sum over keys, as in phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + 1e-8).
        attended = kernel @ v / (kernel.sum(-1, keepdim=True) + 1e-8)
        y = v + self.proj(attended)
        return y + self.mlp(self.norm2(y))


class Transformer(nn.Module):
    """One head; logits are divided by the root of the width that comes in."""

    class Attention(nn.Module):
        def __init__(self, inputs: int, width: int):
            super().__init__()
            self.qkv = nn.Linear(inputs, 3 * width, bias=False)
            self.proj = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return v + self.proj(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(x.shape[-1]), dim=-1) @ v)

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.norm1 = LayerNorm(inputs, 1e-5)
        self.attn = Transformer.Attention(inputs, width)
        self.norm2 = LayerNorm(width, 1e-5)
        self.mlp = torch_vit.MLP(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(x))
        return y + self.mlp(self.norm2(y))


class TokensToToken(nn.Module):
    def __init__(self, case: T2TCase):
        super().__init__()
        attention = {"performer": Performer, "transformer": Transformer}[case.tokens]
        self.soft_split0 = nn.Unfold(7, stride=4, padding=2)
        self.soft_split1 = nn.Unfold(3, stride=2, padding=1)
        self.soft_split2 = nn.Unfold(3, stride=2, padding=1)
        self.attention1 = attention(case.channels * 49, case.token_dim)
        self.attention2 = attention(case.token_dim * 9, case.token_dim)
        self.project = nn.Linear(case.token_dim * 9, case.width)

    def forward(self, images: Tensor) -> Tensor:
        (height, width), batch = images.shape[1:3], len(images)
        x = self.soft_split0(images.permute(0, 3, 1, 2)).transpose(1, 2)
        x = self.attention1(x).transpose(1, 2).reshape(batch, -1, height // 4, width // 4)
        x = self.soft_split1(x).transpose(1, 2)
        x = self.attention2(x).transpose(1, 2).reshape(batch, -1, height // 8, width // 8)
        return self.project(self.soft_split2(x).transpose(1, 2))


class T2TViT(torch_vit.ViT):
    def __init__(self, case: T2TCase):
        super().__init__(case)
        del self.patch_embed
        self.tokens_to_token = TokensToToken(case)
        for block in self.blocks:
            block.attn.qkv = nn.Linear(case.width, 3 * case.width, bias=False)

    def stem(self, images: Tensor) -> Tensor:
        return torch.cat([self.cls_token.expand(len(images), -1, -1), self.tokens_to_token(images)], dim=1)


def answer(case: T2TCase, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, and as `grad NAME` the gradients of sum(logits * cotangent) by all that is learned."""
    model = T2TViT(case).double().eval()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=True)
    logits = model(torch.from_numpy(cases.images(case)))["logits"]
    (logits * torch.from_numpy(cases.cotangent(case))).sum().backward()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {f"grad {name}": parameter.grad.numpy() for name, parameter in learned.items()}
    return {"logits": logits.detach().numpy(), **gradients}
