import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lape_jax.augment import policies
from lape_jax.errors import UserError
from tests import quick
from tests.quick import jit

RECIPE = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)
POLICIES = {
    RECIPE: policies.make(RECIPE, fill=FILL, interpolation="random"),
    "cifar10_autoaugment": policies.make("cifar10_autoaugment", fill=FILL, interpolation="bicubic"),
    "three_augment": policies.make("three_augment", fill=FILL, interpolation="bicubic"),
    "color_jitter": policies.make_color_jitter(0.3),
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (24, 12, 14, 3), np.uint8)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 24)


@pytest.mark.parametrize("name", quick.first(1, POLICIES))
def test_an_image_depends_on_its_own_key_alone(name, images, keys):
    policy = jit(POLICIES[name])
    first = np.asarray(policy(images, keys))
    assert first.shape == images.shape
    assert first.dtype == np.uint8
    assert (first != images).any(axis=(1, 2, 3)).mean() > 0.4
    order = np.random.default_rng(1).permutation(24)
    np.testing.assert_array_equal(policy(images[order], keys[order]), first[order])
    assert (np.asarray(policy(images, keys[order])) != first).any()


@pytest.mark.slow
def test_shards_of_a_batch_give_the_same(images, keys):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows = PartitionSpec("data")
    sharded = jax.shard_map(POLICIES[RECIPE], mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    np.testing.assert_array_equal(jit(sharded)(images, keys), jit(POLICIES[RECIPE])(images, keys))


@pytest.mark.slow
def test_grey_images_and_interpolation(images, keys):
    grey = images[..., :1]
    linear, cubic = (
        np.asarray(jit(policies.make("rand-m9-n1-p1", fill=(128,), interpolation=name))(grey, keys))
        for name in ("bilinear", "bicubic")
    )
    assert linear.shape == grey.shape
    assert 0 < (linear != cubic).any(axis=(1, 2, 3)).mean() < 2 / 3  # of 15 operations 5 are geometric


def test_none_changes_nothing(images, keys):
    assert policies.make("none", fill=FILL, interpolation="bicubic")(images, keys) is images


@pytest.mark.parametrize(
    ("name", "interpolation", "message"),
    [
        ("cifar10_autoaugmnt", "bicubic", "did you mean 'cifar10_autoaugment'"),
        ("randaugment", "bicubic", "is not one of none, cifar10_autoaugment, three_augment, rand-m9"),
        ("rand-m9-foo1", "bicubic", "'foo1' is not a section"),
        (RECIPE, "bicubik", "data.interpolation: 'bicubik' is not one of bicubic, bilinear, random"),
    ],
)
def test_unknown_names_are_refused(name, interpolation, message):
    with pytest.raises(UserError, match=message):
        policies.make(name, fill=FILL, interpolation=interpolation)
