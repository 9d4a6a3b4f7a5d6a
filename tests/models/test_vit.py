"""The Vision Transformer: how many parameters, under which names, and what comes out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.nn.encoder import Carry
from lape_jax.nn.position import sincos_1d, sincos_2d
from tests import quick
from tests.quick import jit

# ---- Parameters ------------------------------------------------------------------------------------------------------


def count(name, **overrides):
    return sum(leaf.size for leaf in jax.tree.leaves(models.create(name, **overrides).param_shapes()))


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        # the table of the LaPE paper and the official code
        ("deit_ti", {"join": "default"}, 5_717_416),
        ("deit_ti", {}, 5_722_024),
        ("deit_ti", {"join": "lape_sharing"}, 5_722_024),
        ("deit_ti", {"join": "shared"}, 5_717_416),
        ("deit_ti", {"join": "unshared"}, 6_133_480),
        ("deit_s", {"join": "default"}, 22_050_664),
        ("deit_s", {}, 22_059_880),
        ("deit_s", {"join": "unshared"}, 22_882_792),
        ("deit_b", {"join": "default"}, 86_567_656),
        ("deit_b", {}, 86_586_088),
        ("deit_ti_distilled", {"join": "default"}, 5_910_800),
        ("deit_ti_distilled", {}, 5_915_408),
        ("deit_s_distilled", {"join": "default"}, 22_436_432),
        ("deit_b_distilled", {"join": "default"}, 87_338_192),
        # a frozen or no table: without 197 x 192; a relative bias: 27 x 27 x 3 in each of 12 layers
        ("deit_ti", {"pe": "sincos_1d", "join": "default"}, 5_717_416 - 37_824),
        ("deit_ti", {"pe": "sincos_2d"}, 5_722_024 - 37_824),
        ("deit_ti", {"pe": "none"}, 5_717_416 - 37_824),
        ("deit_ti", {"pe": "relative"}, 5_717_416 - 37_824 + 26_244),
        ("deit_ti", {"pe": "learnable+relative"}, 5_722_024 + 26_244),
        # the functions of the PE: 0, 1, 192 or 2 x 192 in each of 12 layers
        *(("deit_ti", {"pe_norm": kind}, 5_717_416) for kind in ("identity", "norm")),
        *(("deit_ti", {"pe_norm": kind}, 5_717_416 + 12) for kind in ("scalar", "scalar_norm")),
        *(("deit_ti", {"pe_norm": kind}, 5_717_416 + 12 * 192) for kind in ("vector", "vector_norm")),
        *(("deit_ti", {"pe_norm": kind}, 5_717_416 + 12 * 384) for kind in ("affine", "layernorm")),
        # neither class token nor its row; two layer scales of 192 in each of 12 layers; a head of 10 classes
        ("deit_ti", {"pool": "gap"}, 5_722_024 - 2 * 192),
        ("deit_ti", {"layer_scale": 1e-4}, 5_722_024 + 12 * 384),
        ("deit_ti", {"num_classes": 10}, 5_722_024 - 990 * 193),
        ("deit_ti", {"mlp_ratio": 2}, 5_722_024 - 12 * 384 * (2 * 192 + 1)),
    ],
)
def test_parameter_count(name, overrides, expected):
    assert count(name, **overrides) == expected


def vit(**overrides):
    """A tiny model: 2 x 2 patches, two layers."""
    tiny = {"num_classes": 3, "image_size": 8, "patch_size": 4, "in_channels": 1, "width": 8, "depth": 2, "heads": 2}
    return models.create("vit_micro", **{**tiny, **overrides})


def names(tree):
    return {
        "/".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(dict(tree))
    }


def test_parameter_names_and_shapes():
    model = vit(pe="learnable+relative", distilled=True, layer_scale=0.1, image_size=(8, 12))
    blocks = {
        "norm1/scale": (8,),
        "norm1/bias": (8,),
        "pe_norm/scale": (8,),
        "pe_norm/bias": (8,),
        "attn/qkv/kernel": (8, 24),
        "attn/qkv/bias": (24,),
        "attn/relative_position_bias_table": (3 * 5, 2),
        "attn/proj/kernel": (8, 8),
        "attn/proj/bias": (8,),
        "ls1/gamma": (8,),
        "norm2/scale": (8,),
        "norm2/bias": (8,),
        "mlp/fc1/kernel": (8, 32),
        "mlp/fc1/bias": (32,),
        "mlp/fc2/kernel": (32, 8),
        "mlp/fc2/bias": (8,),
        "ls2/gamma": (8,),
    }
    assert names(model.param_shapes()) == {
        "patch_embed/proj/kernel": (4, 4, 1, 8),
        "patch_embed/proj/bias": (8,),
        "cls_token": (1, 1, 8),
        "dist_token": (1, 1, 8),
        "pos_embed": (2 + 6, 8),
        **{f"blocks/{name}": (2, *shape) for name, shape in blocks.items()},
        "norm/scale": (8,),
        "norm/bias": (8,),
        "head/kernel": (8, 3),
        "head/bias": (3,),
        "head_dist/kernel": (8, 3),
        "head_dist/bias": (3,),
    }


def test_parameters_of_other_options():
    default, unshared, gap = (
        names(model.param_shapes()) for model in (vit(join="default"), vit(join="unshared"), vit(pool="gap"))
    )
    assert not [name for name in default if "pe_norm" in name]
    assert unshared["pos_embed"] == (2, 5, 8)
    assert gap["pos_embed"] == (4, 8)
    assert "cls_token" not in gap
    assert "pos_embed" not in names(vit(pe="sincos_2d").param_shapes())
    assert names(vit(pe_norm="scalar").param_shapes())["blocks/pe_norm/scale"] == (2,)


def test_parameters_at_the_start():
    params = jit(vit().init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    assert names(params) == names(vit().param_shapes())
    assert 0.01 < np.asarray(params["pos_embed"]).std() < 0.03
    np.testing.assert_array_equal(params["blocks"]["pe_norm"]["scale"], 1)
    np.testing.assert_array_equal(params["blocks"]["pe_norm"]["bias"], 0)
    np.testing.assert_array_equal(params["head"]["bias"], 0)


# ---- What comes out --------------------------------------------------------------------------------------------------


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def random_params(model):
    """Parameters in which nothing is zero or one."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw(*leaf.shape, seed=len(str(path))) / 2 + (path[-1].key == "scale"), model.param_shapes()
    )


IMAGES = draw(2, 8, 8, 1)


@functools.cache
def run(train=False, **overrides):
    """(logits, out, parameters) of the tiny model, all random."""
    model = vit(**overrides)
    params = random_params(model)
    apply = jit(functools.partial(model.apply, train=train))
    logits, out = apply({"params": params}, IMAGES, rngs={"dropout": jax.random.key(0)})
    return *jax.device_get((logits, out)), params


def layer_norm(z, params):
    z = z - z.mean(-1, keepdims=True)
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def patch_tokens(params):
    patches = IMAGES.reshape(2, 2, 4, 2, 4, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 16)
    return patches @ params["patch_embed"]["proj"]["kernel"].reshape(16, 8) + params["patch_embed"]["proj"]["bias"]


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


SHAPES = {
    "pos_embed": (5, 8),
    "stem": (2, 5, 8),
    "tokens": (2, 2, 5, 8),
    "pe": (2, 5, 8),
    "encoded": (2, 5, 8),
    "pre_logits": (2, 8),
}


@pytest.mark.parametrize(
    ("overrides", "different"),
    [
        ({}, {}),
        ({"join": "lape_sharing", "pe": "sincos_1d"}, {}),
        ({"join": "shared", "pe": "sincos_2d"}, {}),
        ({"join": "unshared"}, {"pos_embed": (2, 5, 8)}),
        ({"join": "default"}, {"pe": None}),
        ({"pe": "none"}, {"pe": None, "pos_embed": None}),
    ],
    ids=str,
)
def test_out(overrides, different):
    model = vit(**overrides)
    logits, out = jax.eval_shape(model.apply, {"params": model.param_shapes()}, IMAGES)
    assert logits.shape == (2, 3)
    assert {key: value and value.shape for key, value in out.items()} == {**SHAPES, **different}


def test_stem_and_head_with_a_class_token():
    logits, out, params = run()
    cls = np.broadcast_to(params["cls_token"], (2, 1, 8))
    close(out["stem"], np.concatenate([cls, patch_tokens(params)], axis=1))
    close(out["encoded"], layer_norm(out["tokens"][-1], params["norm"]))
    close(out["pre_logits"], out["encoded"][:, 0])
    close(logits, out["pre_logits"] @ params["head"]["kernel"] + params["head"]["bias"])
    np.testing.assert_array_equal(out["pos_embed"], params["pos_embed"])


def test_default_joining_adds_the_table_to_the_stem():
    _, out, params = run(join="default", pool="gap")
    close(out["stem"], patch_tokens(params) + params["pos_embed"])


def test_mean_pooling_has_no_class_token():
    logits, out, params = run(pool="gap")
    close(out["stem"], patch_tokens(params))
    close(out["pre_logits"], layer_norm(out["tokens"][-1], params["norm"]).mean(axis=1))
    close(logits, out["pre_logits"] @ params["head"]["kernel"] + params["head"]["bias"])


def test_distilled_model_has_two_heads():
    trained, out, params = run(distilled=True, train=True)
    cls_logits, dist_logits = out["heads"]
    rows = [np.broadcast_to(params[name], (2, 1, 8)) for name in ("cls_token", "dist_token")]
    close(out["stem"], np.concatenate([*rows, patch_tokens(params)], axis=1))
    close(cls_logits, out["encoded"][:, 0] @ params["head"]["kernel"] + params["head"]["bias"])
    close(dist_logits, out["encoded"][:, 1] @ params["head_dist"]["kernel"] + params["head_dist"]["bias"])
    close(out["pre_logits_dist"], out["encoded"][:, 1])
    for logits in (trained, run(distilled=True)[0]):
        close(logits, (cls_logits + dist_logits) / 2)


@pytest.mark.parametrize(
    ("overrides", "table"),
    [
        ({"pe": "sincos_1d"}, sincos_1d(5, 8)),
        ({"pe": "sincos_2d"}, sincos_2d((2, 2), 8, num_prefix_tokens=1)),
        ({"pe": "sincos_2d", "distilled": True}, sincos_2d((2, 2), 8, num_prefix_tokens=2)),
        ({"pe": "sincos_1d+relative", "pool": "gap"}, sincos_1d(4, 8)),
        ({"pe": "sincos_2d", "image_size": (8, 16)}, sincos_2d((2, 4), 8, num_prefix_tokens=1)),
    ],
    ids=["1d", "2d", "2d-distilled", "1d-gap", "2d-oblong"],
)
def test_frozen_tables_have_a_row_for_each_token(overrides, table):
    model = vit(**overrides)
    shapes = jax.eval_shape(model.apply, {"params": model.param_shapes()}, np.zeros((1, *model.input_shape)))[1]
    assert shapes["pos_embed"].shape == shapes["pe"].shape[1:] == table.shape
    bound = model.bind({"params": random_params(model)})
    np.testing.assert_array_equal(bound.position_table, table.astype(np.float32))


def test_dropout_acts_in_training_only():
    plain = run()[0]
    np.testing.assert_array_equal(run(dropout=0.5, attn_dropout=0.5, drop_path=0.5)[0], plain)
    logits, out, _ = run(dropout=0.5, train=True)
    assert np.abs(logits - plain).max(axis=1).min() > 1e-3
    dropped = out["stem"] == 0
    assert 0.25 < dropped.mean() < 0.75
    close(out["stem"][~dropped], 2 * run()[1]["stem"][~dropped])
    close(out["pos_embed"], run()[1]["pos_embed"])
    close(out["pe"], run()[1]["pe"])  # the PE is never dropped


@pytest.mark.parametrize("join", quick.first(1, ["lape", "default", "lape_sharing"]))
def test_where_the_pe_ends_up(join):
    """Once attention puts out nothing, nothing depends on LaPE's table, which neither residual stream nor MLP nor final
    LayerNorm have seen; with the default joining it does."""
    model = vit(join=join)
    params = random_params(model)
    params["blocks"]["attn"]["proj"] = jax.tree.map(np.zeros_like, params["blocks"]["attn"]["proj"])

    def loss(params, images):
        logits, out = model.apply({"params": params}, images)
        return jnp.sum(logits**2) + jnp.sum(out["tokens"] ** 2) + jnp.sum(out["encoded"] ** 2)

    size = np.abs(jit(jax.grad(loss))(params, IMAGES)["pos_embed"]).max()
    assert size == 0 if join.startswith("lape") else size > 1e-2


@pytest.mark.slow
def test_jit_equals_eager():
    logits, out, params = run()
    eager_logits, eager_out = vit().apply({"params": params}, jnp.asarray(IMAGES))
    np.testing.assert_allclose(eager_logits, logits, rtol=1e-5, atol=1e-6)
    for name, value in out.items():
        np.testing.assert_allclose(eager_out[name], value, rtol=1e-5, atol=1e-5)


def test_encoding_in_segments_equals_the_whole():
    _, out, params = run()

    def segments(model, images):
        carry, tables = model.embed(images)
        carry, _ = model.encode(carry, tables, first=0, count=1)
        return model.encode(carry, tables, first=1)[0]

    carry = jit(functools.partial(vit().apply, method=segments))({"params": params}, IMAGES)
    assert isinstance(carry, Carry)
    close(carry.tokens, out["tokens"][-1])
    close(carry.pe, out["pe"][-1])


@pytest.mark.slow
def test_what_is_not_used_costs_nothing():
    """Temporary memory for logits alone does not grow with depth; keeping the tokens of each layer does."""

    def bytes_for(depth, *names):
        model = vit(depth=depth)

        def function(params, images):
            logits, out = model.apply({"params": params}, images)
            return logits, sum(jnp.sum(out[name].astype(jnp.float32) ** 2) for name in names)

        images = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
        return jit(function).lower(model.param_shapes(), images).compile().memory_analysis().temp_size_in_bytes

    tokens = 16 * 5 * 8 * 4
    assert bytes_for(32) <= bytes_for(4) + tokens
    assert bytes_for(32) + 28 * tokens <= bytes_for(32, "tokens", "pe")


@pytest.mark.parametrize("pe", ["learnable", "sincos_2d+relative"])
def test_bfloat16(pe):
    model = vit(pe=pe, dtype="bfloat16", layer_scale=0.5)
    logits, out = jax.eval_shape(model.apply, {"params": model.param_shapes()}, IMAGES)
    types = {name: str(value.dtype) for name, value in out.items()}
    assert {types[name] for name in ("pos_embed", "pe", "encoded", "pre_logits")} == {"float32"}
    assert {types[name] for name in ("stem", "tokens")} == {"bfloat16"}
    assert logits.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.param_shapes())} == {"float32"}


def test_bfloat16_is_near_float32():
    logits = run()[0]
    difference = np.abs(run(dtype="bfloat16")[0] - logits).max()
    assert 0 < difference < 0.05 * np.abs(logits).max()


@pytest.mark.parametrize("overrides", [{"distilled": True}, {"pe": "sincos_2d+relative", "layer_scale": 0.1}], ids=str)
def test_float64_from_end_to_end(overrides):
    with jax.enable_x64(True):
        model = vit(dtype="float64", drop_path=0.1, dropout=0.1, attn_dropout=0.1, **overrides)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.param_shapes())} == {"float32"}
        apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
        found = jax.eval_shape(apply, {"params": model.param_shapes()}, IMAGES)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float64"}


def test_float64_keeps_frozen_tables_exact():
    with jax.enable_x64(True):
        model = vit(pe="sincos_1d", dtype="float64")
        table = model.bind({"params": random_params(model)}).position_table
        np.testing.assert_array_equal(np.asarray(table), sincos_1d(5, 8))


def test_images_of_another_shape_are_user_errors():
    with pytest.raises(UserError, match=r"the model takes images of shape \(8, 8, 1\), not \(8, 12, 1\)"):
        jax.eval_shape(vit().apply, {"params": vit().param_shapes()}, np.zeros((1, 8, 12, 1), np.float32))


def test_cudnn_is_missed_where_it_is_used_and_not_before():
    model = vit(attention="cudnn", dtype="bfloat16")
    with pytest.raises(UserError, match="attention='cudnn' is not possible here, use attention='auto': cuDNN"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
