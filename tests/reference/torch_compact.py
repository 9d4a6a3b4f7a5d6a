"""An independent ViT-Lite, CVT and CCT in PyTorch float64, from the formulas of the Compact Transformers.

Names are those of SHI-Labs/Compact-Transformers; what LaPE adds to a block is called as in the official LaPE.
"""

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import cases, torch_vit
from tests.reference.compact_cases import CompactCase
from tests.reference.torch_vit import LayerNorm, PENorm, gelu, sincos_1d, sincos_2d


class Tokenizer(nn.Module):
    """Patches by one convolution with bias, or convolutions without bias, each with ReLU and max-pooling."""

    def __init__(self, case: CompactCase):
        super().__init__()
        if not case.convs:
            layers = [nn.Sequential(nn.Conv2d(case.channels, case.width, case.patch, stride=case.patch))]
        else:
            channels = [case.channels, *[64] * (case.convs - 1), case.width]
            stride, padding = max(1, case.kernel // 2 - 1), max(1, case.kernel // 2)
            layers = [
                nn.Sequential(
                    nn.Conv2d(before, after, case.kernel, stride=stride, padding=padding, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, stride=2, padding=1),
                )
                for before, after in itertools.pairwise(channels)
            ]
        self.conv_layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv_layers(images.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """y = x + attention(pre_norm(x) [+ p]); z = norm1(y); z + linear2(gelu(linear1(z)))."""

    def __init__(self, case: CompactCase):
        super().__init__()
        hidden = int(case.width * case.mlp_ratio)
        if case.has_pe_norm:
            self.pe_norm = PENorm(case.pe_norm, case.width, case.ln_eps)
        self.pre_norm = LayerNorm(case.width, case.ln_eps)
        self.self_attn = torch_vit.Attention(case)
        self.self_attn.qkv = nn.Linear(case.width, 3 * case.width, bias=False)
        self.norm1 = LayerNorm(case.width, case.ln_eps)
        self.linear1 = nn.Linear(case.width, hidden)
        self.linear2 = nn.Linear(hidden, case.width)

    def forward(self, x: Tensor, p: Tensor | None) -> Tensor:
        fed = self.pre_norm(x)
        y = x + self.self_attn(fed if p is None else fed + p)
        z = self.norm1(y)
        return z + self.linear2(gelu(self.linear1(z)))


class Classifier(nn.Module):
    def __init__(self, case: CompactCase):
        super().__init__()
        self.case = case
        table = torch.zeros(1, case.rows, case.width)
        if case.absolute == "learnable" and case.join == "unshared":
            for layer in range(case.depth):
                self.register_parameter(f"positional_emb{layer}", nn.Parameter(table.clone()))
        elif case.absolute == "learnable":
            self.positional_emb = nn.Parameter(table)
        elif case.absolute is not None:
            one_d = case.absolute == "sincos_1d"
            frozen = sincos_1d(case.rows, case.width) if one_d else sincos_2d(case.grid, case.width, case.extra_tokens)
            self.register_buffer("positional_emb", frozen[None], persistent=False)
        if case.pool == "token":
            self.class_emb = nn.Parameter(torch.zeros(1, 1, case.width))
        else:
            self.attention_pool = nn.Linear(case.width, 1)
        self.blocks = nn.ModuleList(Block(case) for _ in range(case.depth))
        self.norm = LayerNorm(case.width, case.ln_eps)
        self.fc = nn.Linear(case.width, case.classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.case.pool == "token":
            x = torch.cat([self.class_emb.expand(len(x), -1, -1), x], dim=1)
        join, w = self.case.join, getattr(self, "positional_emb", None)
        if join == "default" and w is not None:
            x = x + w
        for layer, block in enumerate(self.blocks):
            if join in ("shared", "unshared"):
                x = x + (w if join == "shared" else getattr(self, f"positional_emb{layer}"))
            p = block.pe_norm(w) if self.case.has_pe_norm else None
            x = block(x, p)
            w = p if join == "lape" else w
        x = self.norm(x)
        if self.case.pool == "token":
            return self.fc(x[:, 0])
        scores = self.attention_pool(x)[..., 0]
        weight = scores.exp() / scores.exp().sum(1, keepdim=True)
        return self.fc(sum(weight[:, n, None] * x[:, n] for n in range(x.shape[1])))


class Compact(nn.Module):
    def __init__(self, case: CompactCase):
        super().__init__()
        self.tokenizer = Tokenizer(case)
        self.classifier = Classifier(case)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.tokenizer(images))


def answer(case: CompactCase, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, and as `grad NAME` the gradients of sum(logits * cotangent)."""
    model = Compact(case).double()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=True)
    logits = model(torch.from_numpy(cases.images(case)))
    (logits * torch.from_numpy(cases.cotangent(case))).sum().backward()
    gradients = {f"grad {name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return {"logits": logits.detach().numpy(), **gradients}
