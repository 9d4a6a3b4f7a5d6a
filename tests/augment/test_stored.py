"""The same pixels as ever: what operations, policies and recipes make of given images and keys, as it was once stored.

Stored and compared by `python -m tests.augment.test_stored [--store]`, the bits are the same. The tests compile without
optimisations, and two versions of JAX: where products and sums are not contracted alike, an interpolated value in
100,000 is truncated to another whole number, and noise has another last bit.
"""

import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from lape_jax.augment import augmentation, operations, policies, together, warp
from lape_jax.errors import UserError
from tests.augment import samples, test_augmentation

GOLDEN = Path(__file__).with_name("golden") / "stored.npz"
FILL = (124, 116, 104)
POLICIES = ("rand-m9-mstd0.5-inc1", "cifar10_autoaugment", "three_augment", "color_jitter")
# Of each operation, beginnings and ends of what the policies draw, and what is between.
ARGUMENTS = {
    "posterize": (0, 3, 8),
    "solarize": (0, 130, 256),
    "solarize_add": (0, 55, 110),
    "rotate": (-27, 3.3, 30),
    "shear_x": (-0.3, 0.027, 0.27),
    "shear_y": (-0.3, 0.027, 0.27),
    "translate_x": (-0.45, 0.1, 0.405),
    "translate_y": (-0.45, 0.1, 0.405),
}
FACTORS = (0.1, 0.93, 1.9)  # of all others


def everything() -> tuple[np.ndarray, operations.Drawn]:
    """Every operation, argument and method on a photograph, a pale one, and a dark image with a bright pixel."""
    images = samples.images()[[0, 4, 7], 12:32, 24:46]
    kinds = [
        (operations.NAMES.index(name), argument, method)
        for name in operations.NAMES
        for argument in ARGUMENTS.get(name, FACTORS)
        for method in ((warp.NEAREST, warp.BILINEAR, warp.BICUBIC) if name in operations.GEOMETRIC else (0,))
    ]
    types = np.int32, np.float32, np.int32
    drawn = operations.Drawn(*(np.asarray(c, t) for c, t in zip(zip(*kinds, strict=True), types, strict=True)))
    drawn = jax.tree.map(lambda column: np.repeat(column, len(images))[:, None], drawn)
    return np.tile(images, (len(kinds), 1, 1, 1)), drawn


def of_operations() -> np.ndarray:
    each = jax.jit(lambda *rows: jax.lax.map(lambda row: operations.apply(*row, FILL), rows))
    return np.asarray(each(*everything()))


def of_policy(name: str) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (24, 12, 14, 3), np.uint8)
    images[::2] = samples.images()[:2].repeat(6, 0)[:, 20:32, 30:44]
    jitter = name == "color_jitter"
    policy = policies.make_color_jitter(0.3) if jitter else policies.make(name, fill=FILL, interpolation="random")
    return np.asarray(jax.jit(policy)(images, jax.random.split(jax.random.key(0), len(images))))


def of_recipe(order: str) -> np.ndarray:
    """Crop, flip, policy, jitter, normalisation, erasing and mixing of floats, in four draws of the mix."""
    options = {**test_augmentation.EVERYTHING, "policy": POLICIES[0], "color_jitter": 0.3, "order": order}
    with mock.patch.object(augmentation, "check"):  # no run may have a policy and the jitter; here all stages take part
        make = augmentation.make(test_augmentation.config(**options), num_classes=5, mesh=test_augmentation.mesh())
    make = jax.jit(make)
    batch = test_augmentation.batch(unreadable=(3,))
    return np.stack([make(batch, jax.random.key(seed), True)["image"] for seed in range(4)])


def everything_stored() -> dict[str, np.ndarray]:
    found = {"operations": of_operations(), **{name: of_policy(name) for name in POLICIES}}
    return found | {order: of_recipe(order) for order in augmentation.ERASE_FIRST}


def assert_same(found, expected):
    """But for a value in 10,000, or its rounding if it is no whole number."""
    off = np.abs(np.asarray(found, np.float64) - expected) > (0 if expected.dtype == np.uint8 else 1e-6)
    assert off.mean() < 1e-4, off.sum()


@pytest.fixture(scope="module")
def stored():
    return np.load(GOLDEN)


def test_operations(stored):
    assert_same(of_operations(), stored["operations"])


@pytest.mark.parametrize("every", [1, pytest.param(17, marks=pytest.mark.slow)])  # so few that want another place
def test_a_gpu_computes_the_same(every, stored):
    images, drawn = everything()
    rows = np.flatnonzero((drawn.operation[:, 0] < len(operations.POINTWISE)) | (np.arange(len(images)) % every == 0))
    images, drawn = images[rows], jax.tree.map(lambda column: column[rows], drawn)
    found = jax.jit(lambda images, drawn: together.apply(images, drawn, FILL))(images, drawn)
    assert_same(found, stored["operations"][rows])


@pytest.mark.slow
def test_layers_follow_one_another_on_a_gpu():
    images, drawn = everything()
    pairs = jax.tree.map(lambda column: np.concatenate([column, column[::-1]], axis=1)[::9], drawn)
    found = jax.jit(lambda images, drawn: together.apply(images, drawn, FILL))(images[::9], pairs)
    each = jax.jit(lambda *rows: jax.lax.map(lambda row: operations.apply(*row, FILL), rows))
    assert_same(found, np.asarray(each(images[::9], pairs)))


def test_more_than_a_gpu_counts():
    images = jax.ShapeDtypeStruct((2**15, 256, 256, 1), np.uint8)
    drawn = operations.Drawn(*(jax.ShapeDtypeStruct((2**15, 1), t) for t in (np.int32, np.float32, np.int32)))
    with pytest.raises(UserError, match="32,768 images of 256 x 256 pixels are too many for one device"):
        jax.eval_shape(lambda images, drawn: together.apply(images, drawn, (0,)), images, drawn)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in POLICIES])
def test_policies(name, stored):
    assert_same(of_policy(name), stored[name])


@pytest.mark.slow
@pytest.mark.parametrize("order", augmentation.ERASE_FIRST)
def test_recipes(order, stored):
    assert_same(of_recipe(order), stored[order])


if __name__ == "__main__":
    if "--store" in sys.argv:
        np.savez_compressed(GOLDEN, **everything_stored())
    else:
        before = np.load(GOLDEN)
        print({name: int((answer != before[name]).sum()) for name, answer in everything_stored().items()})
