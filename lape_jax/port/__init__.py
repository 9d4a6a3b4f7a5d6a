"""Weights from elsewhere and back: PyTorch state dicts (official LaPE, DeiT, timm), and files that hold weights.

    variables = port.load("deit_tiny_patch16_224.pth", model)     # .pth, .pt, .safetensors or .npz
    port.save("lape.safetensors", variables, model)               # a state dict for PyTorch
    variables = port.from_torch(torch_model.state_dict(), model)  # the same without a file
    state_dict = port.to_torch(variables, model)

PyTorch is neither needed nor imported.
"""

from lape_jax.port.files import load, save
from lape_jax.port.torch import from_torch, to_torch

__all__ = ["from_torch", "load", "save", "to_torch"]
