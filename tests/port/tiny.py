"""Small models and weights for the tests here."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from lape_jax import models, port

TINY = {"width": 32, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 8, "num_classes": 5}


def tiny(**settings):
    return models.create("deit_ti", **{**TINY, **settings})


def random_variables(model, dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(dtype), model.variable_shapes())


def identical(left, right):
    """Same names, types, shapes and bits."""
    left, right = flatten_dict(left, sep="/"), flatten_dict(right, sep="/")
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert isinstance(right[name], np.ndarray)
        assert (array.dtype, array.shape) == (right[name].dtype, right[name].shape), name
        assert array.tobytes() == right[name].tobytes(), name


def round_trip(model, dtype=np.float32):
    variables = random_variables(model, dtype)
    state_dict = port.to_torch(variables, model)
    identical(variables, port.from_torch(state_dict, model))
    return state_dict
