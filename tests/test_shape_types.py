"""The shape types in signatures are checked while tests run: conftest.py has installed the hook that does so."""

import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import lape_jax
from lape_jax import models
from lape_jax.augment.geometry import random_flip
from lape_jax.augment.photometric import normalise
from lape_jax.nn.attention import Attention
from lape_jax.nn.encoder import Carry
from lape_jax.nn.join import JOINS
from lape_jax.nn.layers import LayerScale, Mlp, PatchEmbed, drop_path
from lape_jax.nn.pe_norm import PENorm
from lape_jax.tasks.classify import loss as classify
from tests.shape_types import has_shape_types


def functions():
    """Name and function of all functions, methods and properties of the package with shape types in their signature."""
    for info in pkgutil.walk_packages(lape_jax.__path__, "lape_jax."):
        module = importlib.import_module(info.name)
        for owner in [module, *(value for value in vars(module).values() if inspect.isclass(value))]:
            for value in vars(owner).values():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                plain = inspect.unwrap(function) if callable(function) else None
                if not inspect.isfunction(plain) or plain.__module__ != info.name:
                    continue
                if any(map(has_shape_types, plain.__annotations__.values())):
                    yield f"{plain.__module__}.{plain.__qualname__}", function


def is_checked(function) -> bool:
    while hasattr(function, "__wrapped__"):
        if "jaxtyping" in getattr(function, "__code__", is_checked.__code__).co_filename:
            return True
        function = function.__wrapped__
    return False


def test_every_shape_type_is_checked():
    found = dict(functions())
    expected = ("models.vit.ViT.__call__", "nn.join.Lape.block", "nn.layers.drop_path", "data.order.epoch_permutation")
    assert found.keys() >= {f"lape_jax.{name}" for name in expected}
    assert not [name for name, function in found.items() if not is_checked(function)]


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


KEY = jax.eval_shape(lambda: jax.random.key(0))
KEYS = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
TINY = {"image_size": 4, "patch_size": 2, "width": 8, "depth": 2, "heads": 2}
vit = functools.partial(models.create, "vit_micro", **TINY)


def init(module, **kwargs):
    return functools.partial(module.init, **kwargs)


def joined(x, pe):
    return JOINS["lape"].block(x, pe, lambda z: z, lambda w: w)


def encode(model):
    """Initialises a model through its encoder, entered with a carry of the test's making."""
    return lambda key, tokens, pe: model.init(key, Carry(tokens, pe), method="encode")


uint8 = functools.partial(zeros, dtype=jnp.uint8)
WRONG = {
    "rank of images": (init(vit()), KEY, zeros(4, 4, 3)),
    "type of images": (init(vit()), KEY, uint8(1, 4, 4, 3)),
    "rank of patches": (init(PatchEmbed(8, (2, 2))), KEY, zeros(4, 4, 3)),
    "rank of tokens": (init(Mlp(8), train=False), KEY, zeros(5, 8)),
    "rank of tokens in attention": (init(Attention(2), train=False), KEY, zeros(5, 8)),
    "rank of tokens in layer scale": (init(LayerScale(1.0)), KEY, zeros(8)),
    "PE with a batch axis": (init(PENorm()), KEY, zeros(1, 5, 8)),
    "a PE with a batch axis": (joined, zeros(2, 5, 8), zeros(2, 5, 8)),
    "a PE of other length": (joined, zeros(2, 5, 8), zeros(4, 8)),
    "a PE of other width": (joined, zeros(2, 5, 8), zeros(5, 4)),
    "carried tokens without a batch axis": (encode(vit()), KEY, zeros(5, 8), zeros(5, 8)),
    "carried PE with a batch axis": (encode(vit()), KEY, zeros(2, 5, 8), zeros(1, 5, 8)),
    "carried PE of other length": (encode(vit()), KEY, zeros(2, 5, 8), zeros(4, 8)),
    "a rate per sample": (drop_path, zeros(2, 5, 8), zeros(2), KEY),
    "float images": (random_flip, zeros(1, 4, 4, 3), KEYS),
    "rank of pixels": (lambda images: normalise(images, (0.5,), (0.5,)), uint8(4, 4, 1)),
    "labels for targets": (classify.cross_entropy, zeros(2, 3), zeros(2, dtype=jnp.int32)),
    "targets of another batch": (classify.cross_entropy, zeros(2, 3), zeros(3, 3)),
    "float labels": (lambda *args: classify.in_top(*args, 1), zeros(2, 3), zeros(2)),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shapes_are_noticed(case):
    function, *arguments = WRONG[case]
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(function, *arguments)


def test_right_shapes_are_not():
    jax.eval_shape(joined, zeros(2, 5, 8), zeros(5, 8))
    jax.eval_shape(encode(vit()), KEY, zeros(2, 5, 8), zeros(5, 8))
    jax.eval_shape(init(vit()), KEY, zeros(1, 4, 4, 3))
    assert np.isfinite(float(classify.cross_entropy(jnp.zeros((1, 2)), jnp.ones((1, 2)))[0]))
