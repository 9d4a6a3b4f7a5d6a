"""ViT-Lite against a NumPy float64 forward pass written from the reference's formulas, and its published sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from lape_jax import models
from tests import quick

SIZES = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 3, "heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "classes", "published", "lape"),
    [
        ("vit_lite_6_4", 10, 3_190_538, 6 * 2 * 256),
        ("vit_lite_6_4", 100, 3_213_668, 6 * 2 * 256),
        ("vit_lite_7_4", 10, 3_716_874, 3_584),
        ("vit_lite_7_4", 100, 3_740_004, 3_584),
    ],
)
def test_published_parameter_counts(name, classes, published, lape):
    count = {
        join: sum(
            leaf.size for leaf in jax.tree.leaves(models.create(name, join=join, num_classes=classes).param_shapes())
        )
        for join in ("default", "lape")
    }
    assert count == {"default": published, "lape": published + lape}


def test_initial_values_and_rates():
    model = models.create("vit_lite_7_4", num_classes=10)
    assert (model.attn_dropout, model.drop_path, model.dropout, model.ln_eps) == (0.1, 0.1, 0.0, 1e-5)
    params = models.create("vit_lite_7_4", depth=1).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert not params["cls_token"].any()
    np.testing.assert_allclose(params["pos_embed"].std(), 0.2, rtol=0.03)
    np.testing.assert_allclose(params["patch_embed"]["proj"]["kernel"].std(), math.sqrt(2 / 48), rtol=0.03)
    bound = 1 / math.sqrt(48)
    assert 0.9 * bound < jnp.abs(params["patch_embed"]["proj"]["bias"]).max() <= bound
    assert "bias" not in params["blocks"]["attn"]["qkv"]


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape), model.param_shapes())


def forward(params, images, lape):
    """The classifier of Compact-Transformers, tensor by tensor."""
    p = {"/".join(path): value for path, value in flatten_dict(params).items()}
    gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)

    def norm(x, name, layer=None):
        scale, bias = (
            p[f"{name}/{part}"] if layer is None else p[f"{name}/{part}"][layer] for part in ("scale", "bias")
        )
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    b, width, heads = len(images), SIZES["width"], SIZES["heads"]
    x = np.zeros((b, 5, width))
    x[:, 0] = p["cls_token"][0, 0]
    for row in range(2):
        for column in range(2):
            patch = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            kernel = p["patch_embed/proj/kernel"]
            x[:, 1 + 2 * row + column] = np.einsum("bijc,ijcd->bd", patch, kernel) + p["patch_embed/proj/bias"]
    pe = p["pos_embed"]
    if not lape:
        x = x + pe
    for layer in range(SIZES["depth"]):
        fed = norm(x, "blocks/norm1", layer)
        if lape:
            pe = norm(pe, "blocks/pe_norm", layer)
            fed = fed + pe
        q, k, v = np.split(fed @ p["blocks/attn/qkv/kernel"][layer], 3, axis=-1)
        heads_out = []
        for head in np.split(np.arange(width), heads):
            logits = q[..., head] @ k[..., head].swapaxes(1, 2) * (width // heads) ** -0.5
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            heads_out.append(weights @ v[..., head])
        x = x + np.concatenate(heads_out, -1) @ p["blocks/attn/proj/kernel"][layer] + p["blocks/attn/proj/bias"][layer]
        z = norm(x, "blocks/norm2", layer)
        hidden = gelu(z @ p["blocks/mlp/fc1/kernel"][layer] + p["blocks/mlp/fc1/bias"][layer])
        x = z + hidden @ p["blocks/mlp/fc2/kernel"][layer] + p["blocks/mlp/fc2/bias"][layer]
    return norm(x, "norm")[:, 0] @ p["head/kernel"] + p["head/bias"]


@pytest.mark.parametrize("join", ["default", "lape"])
def test_logits_and_gradients_are_those_of_the_formulas(join):
    with jax.enable_x64(True):
        model = models.create("vit_lite_7_4", join=join, dtype=jnp.float64, **SIZES)
        params = random_params(model)
        rng = np.random.default_rng(1)
        images, cotangent = rng.uniform(-1, 1, (2, 8, 8, 3)), rng.uniform(-1, 1, (2, 5))

        def loss(params):
            logits, _ = model.apply({"params": params}, jnp.asarray(images), train=False)
            return jnp.sum(logits * cotangent), logits

        gradients, logits = quick.jit(jax.grad(loss, has_aux=True))(params)
        expected = forward(params, images, join == "lape")
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())

        # Each parameter's gradient along a random direction of its own, by a central difference of the NumPy model.
        flat = flatten_dict(params)
        for path, value in flat.items():
            direction = rng.uniform(-1, 1, value.shape)
            high, low = (
                (
                    forward(unflatten_dict({**flat, path: value + sign * 1e-5 * direction}), images, join == "lape")
                    * cotangent
                ).sum()
                for sign in (1, -1)
            )
            slope = float((np.asarray(flatten_dict(gradients)[path]) * direction).sum())
            np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-5, atol=1e-6, err_msg="/".join(path))
