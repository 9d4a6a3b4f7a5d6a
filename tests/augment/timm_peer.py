"""timm's own augmentation code as a peer, file by file: the package itself wants torchvision, these files do not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


def load(name):
    """The module timm/data/<name>.py; skips the test where torch or timm is not installed."""
    pytest.importorskip("torch")
    package = importlib.util.find_spec("timm")
    if package is None:
        pytest.skip("timm is not installed")
    path = Path(package.origin).parent / "data" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"timm_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_distribution(ours, theirs):
    """Two-sample Kolmogorov-Smirnov at a level of 1e-4 (all draws are seeded, so a test that passes keeps passing)."""
    ours, theirs = (np.sort(np.asarray(sample, np.float64).ravel()) for sample in (ours, theirs))
    points = np.concatenate([ours, theirs])
    ours_cdf, theirs_cdf = (np.searchsorted(s, points, side="right") / s.size for s in (ours, theirs))
    distance = np.abs(ours_cdf - theirs_cdf).max()
    limit = np.sqrt(np.log(2 / 1e-4) / 2 * (1 / ours.size + 1 / theirs.size))
    assert distance < limit, f"the distributions differ by {distance:.4f}, of at most {limit:.4f}"
