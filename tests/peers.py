"""Packages that tests compare with, where they are installed and work."""

import pytest


def timm():
    """The module; skips the test where torch or timm is missing, or timm cannot be imported.

    That is so where torchvision, which timm imports, was built for another torch: for CUDA beside a torch for the CPU.
    """
    torch = pytest.importorskip("torch")
    try:
        import timm
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    except Exception as error:  # a RuntimeError at first, and something else when it is tried again
        pytest.skip(f"timm cannot be imported beside torch {torch.__version__}: {error}")
    return timm
