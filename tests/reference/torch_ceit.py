"""An independent CeiT in PyTorch float64, from the formulas of Yuan et al. 2021, in evaluation and in training.

Names are those of coeusguo/ceit. What it has in common with a ViT is that of torch_vit.py.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import cases, torch_vit
from tests.reference.ceit_cases import CeitCase
from tests.reference.torch_vit import gelu

MOMENTUM, EPS = 0.1, 1e-5


class BatchNorm(nn.Module):
    """Channel by channel; x is (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        channels = []
        for c in range(x.shape[1]):
            values, mean, var = x[:, c], self.running_mean[c], self.running_var[c]
            if self.training:
                n = values.numel()
                found_mean = values.sum() / n
                squares = ((values - found_mean) ** 2).sum()
                with torch.no_grad():
                    self.running_mean[c] = (1 - MOMENTUM) * mean + MOMENTUM * found_mean
                    self.running_var[c] = (1 - MOMENTUM) * var + MOMENTUM * squares / (n - 1)
                mean, var = found_mean, squares / n
            else:
                mean, var = mean.clone(), var.clone()
            channels.append(self.weight[c] * (values - mean) / torch.sqrt(var + EPS) + self.bias[c])
        return torch.stack(channels, dim=1)


class Image2Tokens(nn.Module):
    def __init__(self, case: CeitCase):
        super().__init__()
        self.conv = nn.Conv2d(case.channels, case.stem_width, 7, stride=2, padding=3, bias=False)
        self.bn = BatchNorm(case.stem_width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool(self.bn(self.conv(x)))


class HybridEmbed(nn.Module):
    def __init__(self, case: CeitCase):
        super().__init__()
        patch = (case.patch[0] // 4, case.patch[1] // 4)
        self.backbone = Image2Tokens(case)
        self.proj = nn.Conv2d(case.stem_width, case.width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.backbone(images.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)


class LeFF(nn.Module):
    """1x1, 3x3 depth-wise as nine shifted products, 1x1; the class token goes round all of it."""

    def __init__(self, case: CeitCase):
        super().__init__()
        hidden = int(case.width * case.mlp_ratio)
        self.grid = case.grid
        self.conv1 = nn.Conv2d(case.width, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, case.width, 1)
        self.bn1, self.bn2, self.bn3 = BatchNorm(hidden), BatchNorm(hidden), BatchNorm(case.width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.grid
        y = x[:, 1:].transpose(1, 2).reshape(len(x), -1, height, width)
        y = gelu(self.bn1(self._pointwise(self.conv1, y)))
        padded = nn.functional.pad(y, (1, 1, 1, 1))
        y = self.conv2.bias[:, None, None] + sum(
            self.conv2.weight[:, 0, r, c, None, None] * padded[:, :, r : r + height, c : c + width]
            for r in range(3)
            for c in range(3)
        )
        y = self.bn3(self._pointwise(self.conv3, gelu(self.bn2(y))))
        return torch.cat([x[:, :1], y.flatten(2).transpose(1, 2)], dim=1)

    @staticmethod
    def _pointwise(conv: nn.Conv2d, y: Tensor) -> Tensor:
        return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], y) + conv.bias[:, None, None]


class Block(torch_vit.Block):
    def __init__(self, case: CeitCase):
        super().__init__(case)
        del self.mlp
        self.leff = LeFF(case)

    def forward(self, x: Tensor, p: Tensor | None) -> Tensor:
        y = self.attn(self.norm1(x) if p is None else self.norm1(x) + p)
        x = x + (y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.leff(self.norm2(x))
        return x + (y if self.gamma_2 is None else self.gamma_2 * y)


class ClassAttention(torch_vit.Block):
    """A block of which only the last token asks, so that only the last token leaves."""

    def __init__(self, case: CeitCase):
        super().__init__(dataclasses.replace(case, pe="none", join="default"))
        self.feedforward = self.mlp
        del self.mlp

    def forward(self, x: Tensor) -> Tensor:
        normed, heads = self.norm1(x), self.attn.heads
        rows = self.attn.qkv.weight.reshape(3, heads, -1, x.shape[-1])
        biases = self.attn.qkv.bias.reshape(3, heads, -1)
        parts = []
        for head in range(heads):
            q = normed[:, -1] @ rows[0, head].T + biases[0, head]
            k = normed @ rows[1, head].T + biases[1, head]
            v = normed @ rows[2, head].T + biases[2, head]
            weight = torch.softmax((k * q[:, None]).sum(-1) / math.sqrt(q.shape[-1]), dim=-1)
            parts.append((weight[..., None] * v).sum(1))
        y = self.attn.proj(torch.cat(parts, dim=-1))
        last = x[:, -1] + (y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.feedforward(self.norm2(last))
        return last + (y if self.gamma_2 is None else self.gamma_2 * y)


class CeiT(torch_vit.ViT):
    def __init__(self, case: CeitCase):
        super().__init__(case)
        del self.patch_embed
        self.i2t = HybridEmbed(case)
        self.blocks = nn.ModuleList(Block(case) for _ in range(case.depth))
        self.pos_layer_embed = nn.Parameter(torch.zeros(1, case.depth, case.width))
        self.lca = ClassAttention(case)

    def stem(self, images: Tensor) -> Tensor:
        return torch.cat([self.cls_token.expand(len(images), -1, -1), self.i2t(images)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        _, tokens, _ = self.encode(self.stem(images))
        class_tokens = torch.stack([x[:, 0] for x in tokens], dim=1)
        return self.head(self.norm(self.lca(class_tokens + self.pos_layer_embed)))


def answer(case: CeitCase, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits in evaluation, and in training the "train logits", the gradients of sum(train logits * cotangent) as
    `grad NAME`, and the running statistics afterwards as `moved NAME`.
    """
    model = CeiT(case).double()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=True)
    images, cotangent = torch.from_numpy(cases.images(case)), torch.from_numpy(cases.cotangent(case))
    logits, train_logits = model.eval()(images), model.train()(images)
    (train_logits * cotangent).sum().backward()
    found = {"logits": logits.detach().numpy(), "train logits": train_logits.detach().numpy()}
    found |= {f"grad {name}": value.grad.numpy() for name, value in model.named_parameters()}
    return found | {f"moved {name}": value.numpy() for name, value in model.named_buffers() if "running" in name}
