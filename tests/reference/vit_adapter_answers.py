"""The answers of torch_vit_adapter.py and torch_upernet.py to the cases of vit_adapter_cases.py."""

import numpy as np
import torch

from tests.reference import torch_upernet, torch_vit_adapter
from tests.reference.torch_deformable import Deformable
from tests.reference.torch_vit_adapter import tensors
from tests.reference.vit_adapter_cases import HEADS, AdapterCase


def outputs(case: AdapterCase, state: dict, images: torch.Tensor, **options) -> dict[str, torch.Tensor]:
    """By name, (B, h, w, C)."""
    sizes = case.sizes
    options |= {"depth": sizes.depth, "heads": HEADS, "join": sizes.join, "table_grid": sizes.table_grid}
    options |= {"variant": case.variant, "attend": Deformable(heads=HEADS, points=sizes.points)}
    options["rope"] = case.rope
    if case.upernet:
        names, found = ("pixels", "masks", "aux"), torch_upernet.upernet(state, images, **options)
    else:
        names = [f"map{i}" for i in (1, 2, 3, 4)]
        found = torch_vit_adapter.vit_adapter(state, images, **options)
    return {name: value.permute(0, 2, 3, 1) for name, value in zip(names, found, strict=True)}


def answer(case: AdapterCase) -> dict[str, np.ndarray]:
    """Outputs by name; `train NAME` those in training, `grad NAME` the gradients of these, `moved NAME` statistics.

    What is `kept` of the outputs is called "logits".
    """
    state = tensors(case.state(), requires_grad=True)
    images = torch.from_numpy(case.images()).permute(0, 3, 1, 2)
    moved: dict[str, torch.Tensor] = {}
    trained = outputs(case, state, images, train=True, statistics=moved)
    cotangents = case.cotangents()
    sum((trained[name] * torch.from_numpy(value)).sum() for name, value in cotangents.items()).backward()
    with torch.no_grad():
        found = outputs(case, state, images)
    found = {("logits" if name == case.kept else name): value for name, value in found.items()}
    found |= {f"train {name}": value for name, value in trained.items()}
    found |= {f"grad {name}": value.grad for name, value in state.items() if value.grad is not None}
    found |= {f"moved {name}": value for name, value in moved.items() if "num_batches" not in name}
    return {name: value.detach().numpy() for name, value in found.items()}
