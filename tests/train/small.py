"""What the tests of the optimiser share: a small tree of parameters, with blocks of three layers, and a config."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

PARAMS = {
    "patch_embed": {"proj": {"kernel": (2, 2, 1, 4), "bias": (4,)}},
    "cls_token": (1, 1, 4),
    "dist_token": (1, 1, 4),
    "pos_embed": (6, 4),
    "blocks": {
        "norm1": {"scale": (3, 4), "bias": (3, 4)},
        "pe_norm": {"scale": (3,)},
        "attn": {
            "qkv": {"kernel": (3, 4, 12), "bias": (3, 12)},
            "relative_position_bias_table": (3, 9, 2),
        },
        "ls1": {"gamma": (3, 4)},
    },
    "norm": {"scale": (4,), "bias": (4,)},
    "head": {"kernel": (4, 5), "bias": (5,)},
}

NO_WEIGHT_DECAY = ("cls_token", "pos_embed")  # as a model with such parameters declares it


def config(**overrides):
    base = {
        "name": "adamw",
        "schedule": "step",
        "power": 0.9,
        "lr": 1e-2,
        "lr_batch": 0,
        "warmup_lr": 1e-4,
        "min_lr": 1e-3,
        "weight_decay": 0.3,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "momentum": 0.9,
        "nesterov": False,
        "clip_norm": 0.0,
        "lr_mults": (),
        "layer_decay": 1.0,
        "milestones": (),
        "wd_mults": (),
    }
    return ConfigDict({**base, **overrides})


def shapes(tree=PARAMS):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda s: isinstance(s, tuple))


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(scale=scale, size=s.shape), shapes())
