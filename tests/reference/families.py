"""Random weights for models of the other families, by the names of their state dicts; numpy only, as cases.py."""

import math

import numpy as np

from tests.reference import cases


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float64 values for entries of a state dict, in which nothing is zero, one or symmetric."""
    return {name: np.asarray(_draw(name, shape)) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = cases.uniform(name, shape)
    *_, module, leaf = ("", *name.split("."))
    if leaf == "running_var" or (leaf == "weight" and ("norm" in module or module.startswith("bn"))):
        return 1.0 + 0.3 * draw
    if leaf == "bias":
        return 0.2 * draw
    if leaf in ("relative_position_bias_table", "w"):  # "w": random features
        return draw
    if len(shape) == 3:  # tokens and position tables
        return 0.5 * draw
    return draw / math.sqrt(math.prod(shape[1:]))  # matrices and convolutions: unit gain
