"""Writes regnet.npz, what timm's RegNetY computes for the weights and images of `tests.reference.regnet`, in float64.

From the root of the repository: python -m tests.models.golden.make_regnet (made with timm 1.0.31)
"""

import pathlib

import numpy as np
import timm
import torch

from tests.reference import regnet

FILE = pathlib.Path(__file__).with_name("regnet.npz")


def network() -> torch.nn.Module:
    """timm's model with the weights, in evaluation mode."""
    net = timm.create_model("regnety_160", **regnet.SIZES, group_size=regnet.GROUP_WIDTH).double().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(value) for name, value in regnet.weights(shapes).items()})
    return net


def answer(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """The logits, and the mean over all pixels after the stem and after each stage."""
    found = {}
    with torch.no_grad():
        x = torch.from_numpy(regnet.images()).permute(0, 3, 1, 2)
        for name in ("stem", "s1", "s2", "s3", "s4"):
            x = getattr(net, name)(x)
            found[name] = x.mean((2, 3)).numpy()
        return {**found, "logits": net.head(x).numpy()}


if __name__ == "__main__":
    np.savez(FILE, **answer(network()))
    print(f"{FILE.stat().st_size / 1024:.1f} KiB in {FILE.name}")
