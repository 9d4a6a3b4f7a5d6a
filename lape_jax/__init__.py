"""LaPE (Layer-adaptive Position Embedding, ICCV 2023) for Vision Transformers in JAX/Flax."""

__version__ = "0.2.0"
