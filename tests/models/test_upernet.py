"""UperNet's head by hand, what ViT-Adapter and UperNet do in training, and what cannot be built or shown to them."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.models.upernet import adaptive_pool
from lape_jax.nn.convolution import Doubling
from tests import quick

TINY = {"width": 8, "depth": 4, "heads": 2, "mlp_ratio": 1.0, "deform_heads": 2, "deform_points": 2, "ffn_ratio": 0.5}
TINY |= {"spatial_width": 4, "drop_path": 0.0}
HEADS = {"num_classes": 3, "channels": 4, "aux_channels": 4, "head_dropout": 0.0, "image_size": 64, "table_size": 32}


def tiny(name="upernet_vit_adapter_ti", **settings):
    return models.create(name, **{**TINY, **(HEADS if "upernet" in name else {"image_size": 64}), **settings})


@functools.cache
def variables(**settings):
    """None of them at their start."""
    model, rng = tiny(**settings), np.random.default_rng(0)
    draw = lambda x: rng.uniform(0.1, 0.4, x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, model.variable_shapes())


IMAGES = jnp.asarray(np.random.default_rng(1).standard_normal((2, 64, 64, 3)), jnp.float32)


def test_shapes_and_types():
    model = tiny()
    assert (model.grid, model.input_shape, model.grid_of((1, *model.input_shape))) == ((2, 2), (64, 64, 3), (16, 16))
    found = jax.eval_shape(model.apply, variables(), jnp.zeros((3, 96, 64, 3)))
    logits, out = found
    assert logits.shape == (3, 96, 64, 3)
    assert (out["masks"].shape, out["aux"].shape) == ((3, 24, 16, 3), (3, 6, 4, 3))
    assert [m.shape for m in out["maps"]] == [(3, 24, 16, 8), (3, 12, 8, 8), (3, 6, 4, 8), (3, 3, 2, 8)]
    assert out["tokens"].shape == (4, 3, 24, 8)
    assert (out["pe"].shape, out["pos_embed"].shape) == ((4, 24, 8), (5, 8))


@pytest.mark.slow
def test_types_in_bfloat16():
    half = jax.eval_shape(tiny(dtype="bfloat16").apply, variables(), jnp.zeros((1, 64, 64, 3)))
    assert (half[0].dtype, half[1]["masks"].dtype, half[1]["maps"][0].dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)


# ---- The parts by hand -----------------------------------------------------------------------------------------------


def test_pooling_with_more_bins_than_rows():
    """3 rows in 6 bins, each row twice; and 4 columns in 3 bins, which overlap."""
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    rows = quick.jit(lambda x: adaptive_pool(x, 6))(x)[0, :, :, 0]
    np.testing.assert_allclose(rows[:, 0], [0, 0, 4, 4, 8, 8])
    found = quick.jit(lambda x: adaptive_pool(x, 3))(x)[0, :, :, 0]
    np.testing.assert_allclose(found[0], [0.5, 1.5, 2.5])
    np.testing.assert_allclose(quick.jit(lambda x: adaptive_pool(x, 1))(x).ravel(), [5.5])


def test_doubling_by_hand():
    x = jnp.asarray([[[[1.0], [10.0]]]])
    params = {"kernel": jnp.arange(4.0).reshape(2, 2, 1, 1), "bias": jnp.asarray([0.5])}
    y = Doubling(1).apply({"params": params}, x)
    np.testing.assert_allclose(y[0, :, :, 0], [[0.5, 1.5, 0.5, 10.5], [2.5, 3.5, 20.5, 30.5]])


# ---- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_channels_are_dropped_whole_and_blocks_in_training_alone():
    model = tiny(head_dropout=0.5)
    run = quick.jit(
        lambda v, key: model.apply(v, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0][1]["aux"]
    )
    one, other = (run(variables(), jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(one, other)
    same = quick.jit(lambda v: [m.apply(v, IMAGES)[0] for m in (model, tiny())])(variables())
    np.testing.assert_array_equal(*same)


def test_one_image_cannot_be_trained_on():
    with pytest.raises(UserError, match="is trained on at least two images at a time"):
        tiny().apply(variables(), IMAGES[:1], train=True, mutable=["batch_stats"])


@pytest.mark.slow
def test_eight_devices_equal_one():
    """Loss, gradient and statistics of a step, with the images split over a mesh: BatchNorms see all of them."""
    model = tiny()
    images = jnp.asarray(np.tile(IMAGES, (4, 1, 1, 1)) * np.arange(1, 9).reshape(8, 1, 1, 1).astype(np.float32))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(params, stats, images):
        given = {"params": params, "batch_stats": stats}
        (logits, out), moved = model.apply(given, images, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2) + jnp.mean(out["aux"] ** 2), moved["batch_stats"]

    given = variables()
    step = quick.jit(jax.value_and_grad(loss, has_aux=True))
    expected = step(given["params"], given["batch_stats"], images)
    split = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    found = step(given["params"], given["batch_stats"], split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), found, expected)


# ---- Other forms of the same -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    exact, near = (quick.jit(m.apply)(variables(), IMAGES)[0] for m in (tiny(), tiny(dtype="bfloat16")))
    assert 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["upernet_vit_adapter_ti", "vit_adapter_ti"])
def test_folded_it_gives_the_same(name):
    """Of a UperNet, the constants are for images of its size, not for those of its table."""
    model, given = tiny(name), variables(name=name)
    folded, constants = port.fold(given, model)
    assert "pe_norm" not in constants["params"]["blocks"]
    assert constants["params"]["pos_embed"].shape == (4, 17, 8)
    found, expected = (quick.jit(m.apply)(v, IMAGES)[0] for m, v in ((folded, constants), (model, given)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    with pytest.raises(UserError, match="fold a model whose image_size is theirs"):
        jax.eval_shape(folded.apply, constants, jnp.zeros((1, 32, 64, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [("vit_adapter_ti", 8)])
def test_export_with_a_batch_of_any_size(name, depth):
    """For all platforms, though these sample in other ways; the first model has blocks in windows."""
    model, given = tiny(name, depth=depth), jax.tree.map(jnp.asarray, variables(name=name, depth=depth))

    def logits(x):
        return model.apply(given, x)[0]

    run = quick.jit(logits)
    (size,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((size, 64, 64, 3), jnp.float32)
    program = jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "tpu"))(shape)
    again = jax.export.deserialize(program.serialize())
    for images in (IMAGES, IMAGES[:1]):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), again.call(images), run(images)
        )


@pytest.mark.parametrize(
    ("variant", "pe", "join"),
    quick.first(
        0,
        [
            ("detection", "learnable+relative+peg", "lape"),
            ("segmentation", "sincos_1d", "shared"),
            ("detection", "learnable", "default"),
            ("detection", "learnable", "unshared"),
            ("detection", "sincos_2d", "lape"),
            ("segmentation", "learnable+relative+peg", "lape_sharing"),
            ("segmentation", "none", "default"),
        ],
    ),
)
def test_every_joining_and_embedding_is_traced(variant, pe, join):
    """At another size than that of the table, with gradients; 8 blocks, so that some are in windows."""
    model = tiny("vit_adapter_ti", pe=pe, join=join, variant=variant, depth=8)
    shapes = model.variable_shapes()
    expected = {"unshared": (8, 17, 8)}.get(join, (17, 8)) if pe.startswith("learnable") else None
    assert getattr(shapes["params"].get("pos_embed"), "shape", None) == expected

    def loss(params, stats, images):
        maps, _ = model.apply({"params": params, "batch_stats": stats}, images)
        return sum(jnp.sum(m**2) for m in maps)

    images = jax.ShapeDtypeStruct((2, 96, 256, 3), jnp.float32)
    gradients = jax.eval_shape(jax.grad(loss), shapes["params"], shapes["batch_stats"], images)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, shapes["params"])


@pytest.mark.slow
def test_the_class_row_is_never_used():
    model, given = tiny("vit_adapter_ti"), variables(name="vit_adapter_ti")
    changed = {**given, "params": {**given["params"], "pos_embed": given["params"]["pos_embed"].copy()}}
    changed["params"]["pos_embed"][0] = 7
    run = quick.jit(lambda v: model.apply(v, IMAGES)[0])
    jax.tree.map(np.testing.assert_array_equal, run(changed), run(given))


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variant": "detektion"}, "variant='detektion' is not one of detection, segmentation"),
        ({"patch_size": 8}, "patch_size=8: the maps of a ViT-Adapter fit patches of 16 x 16 pixels"),
        ({"image_size": 240}, "image_size=240 is not divisible by 32"),
        ({"table_size": 100}, "table_size=100 is not divisible by patch_size=16"),
        ({"depth": 6}, "depth=6 is not divisible by interactions=4"),
        ({"interactions": 2, "depth": 4}, "adds the patches after each of 4 to one map"),
        ({"deform_heads": 5}, "width=192 is not divisible by deform_heads=5"),
        ({"ffn_ratio": 0.001}, "ffn_ratio=0.001 leaves no hidden channels"),
        ({"channels": 0}, "channels=0 is not positive"),
        ({"head_dropout": 1.0}, r"head_dropout=1.0 is not a rate in \[0, 1\)"),
        ({"distilled": True}, "distilled=True: a ViT-Adapter has neither class nor distillation token"),
        ({"pool": "gap"}, "pool='gap' is not one of maps"),
        ({"attn_dropout": 0.1, "attention": "blocks"}, "attention='blocks' has no attention dropout"),
        ({"pe": "relative", "join": "lape"}, "delivers an absolute position table, and pe='relative'"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("upernet_vit_adapter_ti", **overrides)


def test_wrong_images_are_user_errors():
    with pytest.raises(UserError, match=r"sides are multiples of 32, not 64 x 80"):
        tiny().apply(variables(), jnp.zeros((1, 64, 80, 3)))
    with pytest.raises(UserError, match="takes images of 3 channels"):
        tiny().apply(variables(), jnp.zeros((1, 64, 64, 1)))
