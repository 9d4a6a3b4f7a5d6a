"""Weights from elsewhere and back: PyTorch state dicts (official LaPE, DeiT, timm), big_vision's
parameters, and files that hold weights.

    variables = port.load("deit_tiny_patch16_224.pth", model)     # or .safetensors, .npz, .bin, ...
    port.save("lape.safetensors", variables, model)               # a state dict for PyTorch
    variables = port.from_torch(torch_model.state_dict(), model)  # the same without a file
    state_dict = port.to_torch(variables, model)
    variables = port.from_big_vision(dict(np.load("vit.npz")), model)  # and to_big_vision
    folded_model, folded = port.fold(variables, model)            # LaPE for inference, as constants

PyTorch is neither needed nor imported.
"""

from lape_jax.port.big_vision import from_big_vision, to_big_vision
from lape_jax.port.files import load, save
from lape_jax.port.fold import fold
from lape_jax.port.torch import from_torch, to_torch
from lape_jax.port.transfer import warm_start

__all__ = ["fold", "from_big_vision", "from_torch", "load", "save", "to_big_vision", "to_torch", "warm_start"]
