"""Small models of all families for the tests here, and NumPy's view of what their blocks normalise."""

import jax
import numpy as np

from lape_jax import models
from lape_jax.port.params import flatten, unflatten
from tests.port.tiny import TINY, random_variables, tiny

SWIN = {"image_size": 24, "patch_size": 2, "width": 8, "depths": (2, 1), "heads": (2, 4), "window_size": 3}


def create(family, **settings):
    """A model of depth 2, or a Swin of two blocks and one."""
    if family == "swin_t":
        return models.create(family, **{**SWIN, **settings})
    sizes = {"width": 32, "depth": 2, "heads": 2, "image_size": 16}
    if family in ("ceit_ti", "t2t_vit_7"):
        sizes["image_size"] = 32
    return tiny(**settings) if family == "deit_ti" else models.create(family, **{**sizes, **settings})


def variables_of(model, dtype=np.float32):
    """Random ones; variances are positive."""
    variables = random_variables(model, dtype)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return variables


def without_branches(variables):
    """The same with attention and MLPs that add nothing to the residual stream."""
    ends = ("attn/proj/kernel", "attn/proj/bias", "mlp/fc2/kernel", "mlp/fc2/bias")
    flat = flatten(variables)
    return unflatten({path: 0 * x if path.endswith(ends) else x for path, x in flat.items()})


def norm(x, scale, bias, eps):
    """LayerNorm over the last axis in float64."""
    x = np.asarray(x, np.float64)
    return scale * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + bias


__all__ = ["TINY", "create", "norm", "tiny", "variables_of", "without_branches"]
