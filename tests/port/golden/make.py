"""Makes the files beside it: `python tests/port/golden/make.py`, with PyTorch and timm (made with 2.13, 1.0.31).

vit.pth, vit_legacy.pth   a tiny distilled ViT of timm with layer scales, as a training checkpoint, in both formats
vit.npz                   images (NHWC) and the logits that timm computes for them, in float64
tensors.pth, tensors_legacy.pth   views and types; `VIEWS` in test_pth.py says what they hold
"""

import argparse
import collections
from pathlib import Path

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled

HERE = Path(__file__).parent


def save(value, name):
    torch.save(value, HERE / f"{name}.pth")
    torch.save(value, HERE / f"{name}_legacy.pth", _use_new_zipfile_serialization=False)


def vit():
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    model = VisionTransformerDistilled(**sizes, num_classes=3, init_values=0.5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    optimizer = {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}
    args = argparse.Namespace(lr=0.1, output_dir="", model="tiny", resume=None)
    save({"model": model.state_dict(), "optimizer": optimizer, "epoch": 3, "args": args}, "vit")
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        logits = model.double()(images)
    np.savez(HERE / "vit.npz", images=images.permute(0, 2, 3, 1).numpy(), logits=logits.numpy())


def tensors():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    values = {
        "whole": base,
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "expanded": base[0, :1].expand(3, 2),
        "scalar": base[3, 5],
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "integers": torch.arange(-3, 3),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
    }
    save(collections.OrderedDict(values), "tensors")


if __name__ == "__main__":
    vit()
    tensors()
