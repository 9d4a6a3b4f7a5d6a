"""Packages that tests compare with, where they are installed and work."""

import importlib
import sys
import types

import pytest

OPERATORS = ("nms", "qnms")


def timm() -> types.ModuleType:
    """timm; skips the test where torch or timm is missing, or cannot be imported."""
    return _imported("timm")


def torchvision() -> types.ModuleType:
    """torchvision with its models; skips the test where it is missing, or cannot be imported."""
    return _imported("torchvision")


def transformers() -> types.ModuleType:
    """Hugging Face's transformers; skips the test where it is missing, or cannot be imported."""
    return _imported("transformers")


def _imported(name: str) -> types.ModuleType:
    """The module. All three import torchvision, which may be of another build than torch: for CUDA beside one for CPUs.

    Then torchvision's compiled operators are missing. No model here asks for one, but the package declares two of them
    in Python, and cannot be imported unless they are there.
    """
    torch = pytest.importorskip("torch")
    try:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
                del sys.modules[module]
            for operator in OPERATORS:
                torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
            importlib.import_module("torchvision")
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    except Exception as error:  # a RuntimeError at first, and something else when it is tried again
        pytest.skip(f"{name} cannot be imported beside torch {torch.__version__}: {error}")
