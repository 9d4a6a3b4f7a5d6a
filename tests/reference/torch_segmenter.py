"""An independent Segmenter in PyTorch float64, from the formulas of Strudel et al. 2021, in evaluation.

Names are those of rstrudel/segmenter. Encoder and blocks are those of torch_vit.py; an encoder is made for the padded
images, and gets what `resized` makes of the learned tables.
"""

import dataclasses
import re

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate, pad

from tests.reference import torch_vit
from tests.reference.segmenter_cases import SegmenterCase


class Encoder(torch_vit.ViT):
    """The patch tokens after the final LayerNorm."""

    def forward(self, images: Tensor) -> Tensor:
        x, _, _ = self.encode(self.stem(images))
        return self.norm(x)[:, self.case.extra_tokens :]


class LinearDecoder(nn.Module):
    def __init__(self, case: SegmenterCase):
        super().__init__()
        self.head = nn.Linear(case.width, case.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class MaskDecoder(nn.Module):
    def __init__(self, case: SegmenterCase):
        super().__init__()
        block = dataclasses.replace(case, pe="none", join="default", ln_eps=1e-5)
        self.blocks = nn.ModuleList(torch_vit.Block(block) for _ in range(2))
        self.cls_emb = nn.Parameter(torch.zeros(1, case.classes, case.width))
        self.proj_dec = nn.Linear(case.width, case.width)
        self.proj_patch = nn.Parameter(torch.zeros(case.width, case.width))
        self.proj_classes = nn.Parameter(torch.zeros(case.width, case.width))
        self.decoder_norm = torch_vit.LayerNorm(case.width, 1e-5)
        self.mask_norm = torch_vit.LayerNorm(case.classes, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.shape[1]
        x = torch.cat([self.proj_dec(x), self.cls_emb.expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x, None)
        x = self.decoder_norm(x)
        cosines = []
        for k in range(self.cls_emb.shape[1]):
            p, c = x[:, :patches] @ self.proj_patch, x[:, patches + k, None] @ self.proj_classes
            cosines.append((p * c).sum(-1) / torch.sqrt((p * p).sum(-1) * (c * c).sum(-1)))
        return self.mask_norm(torch.stack(cosines, dim=-1))


def resized(name: str, value: Tensor, case: SegmenterCase) -> Tensor:
    """A table of the case's grid (1, rows, D), or of relative biases (rows, heads), for that of the padded images."""
    new = case.padded[0] // case.patch[0], case.padded[1] // case.patch[1]
    if new == case.grid:
        return value
    if re.fullmatch(r"pos_embed\d*", name):
        extra = case.extra_tokens
        maps = value[:, extra:].reshape(1, *case.grid, -1).permute(0, 3, 1, 2)
        maps = interpolate(maps, size=new, mode=case.resize, align_corners=False)
        return torch.cat([value[:, :extra], maps.flatten(2).transpose(1, 2)], dim=1)
    if name.endswith("relative_position_bias_table"):
        old, new = ([2 * side - 1 for side in grid] for grid in (case.grid, new))
        maps = interpolate(value.T.reshape(1, -1, *old), size=new, mode="bicubic", align_corners=False)
        return maps.flatten(2)[0].T
    return value


def upsampled(masks: Tensor, case: SegmenterCase) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W)"""
    size = case.padded if case.upsample == "padded" else case.at
    return interpolate(masks, size=size, mode="bilinear", align_corners=False)[..., : case.at[0], : case.at[1]]


def answer(case: SegmenterCase, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `logits` the masks that leave the decoder (B, h, w, K), as `pixels` the logits of the images, as `grad NAME`
    the gradients of sum(pixels * cotangent).
    """
    given = {name: torch.from_numpy(np.array(value)).requires_grad_() for name, value in weights.items()}
    at = dataclasses.replace(case, image=case.padded)
    modules = {"encoder": Encoder(at), "decoder": (MaskDecoder if case.decoder == "mask" else LinearDecoder)(case)}
    images = torch.from_numpy(case.images())
    margin = case.padded[0] - case.at[0], case.padded[1] - case.at[1]
    x = pad(images, (0, 0, 0, margin[1], 0, margin[0]))
    for part, module in modules.items():
        mine = {n.removeprefix(f"{part}."): value for n, value in given.items() if n.startswith(f"{part}.")}
        heads = {f"head.{leaf}" for leaf in ("weight", "bias")} | {f"head_dist.{leaf}" for leaf in ("weight", "bias")}
        assert {n for n, _ in module.named_parameters()} - (heads if part == "encoder" else set()) == mine.keys()
        found = {n: resized(n, value, case) if part == "encoder" else value for n, value in mine.items()}
        x = functional_call(module.double(), found, (x,))
    masks = x.transpose(1, 2).reshape(len(images), case.classes, *at.grid)
    pixels = upsampled(masks, case).permute(0, 2, 3, 1)
    (pixels * torch.from_numpy(case.cotangent())).sum().backward()
    answer = {"logits": masks.permute(0, 2, 3, 1), "pixels": pixels}
    answer = {name: value.detach().numpy() for name, value in answer.items()}
    return answer | {f"grad {name}": value.grad.numpy() for name, value in given.items()}
