"""Mixup and CutMix: targets and pixels by hand, draws distributed as timm's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lape_jax.augment import mix
from lape_jax.errors import UserError
from tests.augment.timm_peer import assert_same_distribution, load
from tests.quick import jit

mix_images, mix_targets = jit(mix.mix_images), jit(mix.mix_targets, static_argnums=4)


def test_label_smoothing_by_hand():
    # s = 0.2 over 4 classes: 0.05 of it for each, and 0.8 of the target.
    found = mix.smooth(jnp.asarray([[0, 0, 1, 0], [0.25, 0, 0, 0.75]]), 0.2)
    np.testing.assert_allclose(found, [[0.05, 0.05, 0.85, 0.05], [0.25, 0.05, 0.05, 0.65]], rtol=1e-6)


def mixture(lam, weight):
    return mix.Mix(jnp.float32(lam), jnp.asarray(weight, jnp.float32))


def test_targets_are_mixed_with_the_partners():
    labels = np.arange(3)
    found = mix_targets(labels, labels[::-1], np.ones(3, np.float32), mixture(0.75, [[1]]), 4)
    np.testing.assert_array_equal(found, [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0.25, 0, 0.75, 0]])


def test_float_images_by_hand():
    images = np.asarray([[1.0, 2.0], [5.0, -6.0]], np.float32).reshape(2, 1, 2, 1)
    partners, mask = images[::-1], np.ones(2, np.float32)
    mixup = mix_images(images, partners, mask, mixture(0.75, [[0.75, 0.75]]))
    np.testing.assert_allclose(np.ravel(mixup), [2.0, 0.0, 4.0, -4.0])
    cutmix = mix_images(images, partners, mask, mixture(0.5, [[1, 0]]))
    np.testing.assert_array_equal(np.ravel(cutmix), [1.0, -6.0, 5.0, 2.0])


def test_eight_bit_images_are_rounded_half_to_even():
    images = np.asarray([[0, 10, 255], [1, 12, 255]], np.uint8).reshape(2, 1, 3, 1)
    partners, mask = images[::-1], np.ones(2, np.float32)
    found = mix_images(images, partners, mask, mixture(0.5, np.full((1, 3), 0.5)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, 0, :, 0], [[0, 11, 255]] * 2)
    found = mix_images(images, partners, mask, mixture(0.75, np.full((1, 3), 0.75)))
    np.testing.assert_array_equal(found[:, 0, :, 0], [[0, 10, 255], [1, 12, 255]])  # 0.25, 10.5; 0.75, 11.5
    cutmix = mix_images(images, partners, mask, mixture(1 / 3, [[0, 1, 0]]))
    np.testing.assert_array_equal(cutmix[:, 0, :, 0], [[1, 10, 255], [0, 12, 255]])


def test_an_unreadable_image_leaves_its_partner_alone():
    images = np.asarray([10, 20, 30, 0], np.uint8).reshape(4, 1, 1, 1)
    labels = np.arange(4)
    partner_mask = np.asarray([1, 1, 1, 0], np.float32)[::-1]
    how = mixture(0.25, [[0.25]])
    np.testing.assert_array_equal(np.ravel(mix_images(images, images[::-1], partner_mask, how))[:3], [10, 28, 22])
    found = mix_targets(labels, labels[::-1], partner_mask, how, 4)
    np.testing.assert_array_equal(found[:3], [[1, 0, 0, 0], [0, 0.25, 0.75, 0], [0, 0.75, 0.25, 0]])


@pytest.mark.parametrize("a", [0.2, 0.5, 0.8, 1.0, 3.0])
def test_lambda_has_a_symmetric_beta_distribution(a):
    sample = jit(jax.vmap(lambda key: mix.symmetric_beta(key, a)))(jax.random.split(jax.random.key(1), 20000))
    # Kolmogorov-Smirnov at a level of 1e-3, away from the ends, where float32 rounds to 1.
    grid = np.linspace(0.001, 0.999, 999)
    share = np.searchsorted(np.sort(sample), grid) / len(sample)
    assert np.abs(share - scipy.stats.beta(a, a).cdf(grid)).max() < 1.95 / np.sqrt(len(sample))


@functools.cache
def draws(count, height, width, **options):
    options = {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, **options}
    draw = jax.vmap(lambda key: mix.draw(key, height, width, **options))
    return jax.tree.map(np.asarray, jit(draw)(jax.random.split(jax.random.key(0), count)))


def is_cutmix(drawn):
    return np.isin(drawn.weight, (0, 1)).all(axis=(1, 2)) & (drawn.lam < 1)


def is_mixup(drawn):
    return (drawn.weight == drawn.lam[:, None, None]).all(axis=(1, 2)) & (drawn.lam < 1)


@pytest.mark.parametrize(
    ("options", "mixup", "cutmix"),
    [
        ({"switch_prob": 0.25}, 0.75, 0.25),
        ({"prob": 0.6}, 0.3, 0.3),
        ({"cutmix": 0.0}, 1.0, 0.0),
        ({"mixup": 0.0, "switch_prob": 0.0}, 0.0, 1.0),  # the only one that is on, whatever the switch says
        ({"mixup": 0.0, "prob": 0.0}, 0.0, 0.0),
    ],
)
def test_how_often_a_batch_is_mixed(options, mixup, cutmix):
    drawn = draws(2000, 12, 20, **options)
    none = drawn.lam == 1
    assert (is_mixup(drawn) | is_cutmix(drawn) | none).all()
    assert (drawn.weight[none] == 1).all()
    # Some CutMix boxes are empty: lambda so near 1 that a side rounds down to 0, with probability 1 / 144.
    np.testing.assert_allclose(is_mixup(drawn).mean(), mixup, atol=0.04)
    np.testing.assert_allclose(is_cutmix(drawn).mean(), cutmix, atol=0.04)


def test_mixing_with_nothing_on_is_a_user_error():
    with pytest.raises(UserError, match="mixing needs one of them above 0"):
        mix.draw(jax.random.key(0), 2, 2, mixup=0.0, cutmix=0.0, prob=1.0, switch_prob=0.5)


def sides(weight):
    """Top, left, height and width of the box of each CutMix draw, which must be a rectangle."""
    rows, columns = (weight == 0).any(axis=2), (weight == 0).any(axis=1)
    assert ((weight == 0) == rows[:, :, None] & columns[:, None, :]).all()
    for line in (rows, columns):
        assert (np.abs(np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1) <= 2).all()
    return np.stack([rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)], axis=1)


@pytest.mark.parametrize(("lam", "height", "width"), [(0.75, 4, 6), (0.36, 8, 16), (0.0, 4, 6), (1.0, 4, 6)])
def test_cutmix_boxes_by_hand(lam, height, width):
    # Sides of half the image's (2 x 3), of 0.8 of it (6 x 12), all and nothing.
    draws = np.random.default_rng(0).random((2000, 2), np.float32)
    found = jit(jax.vmap(lambda draws: mix.cut(draws, jnp.float32(lam), height, width)))(draws)
    weight = np.asarray(found.weight)
    cut_height, cut_width = {0.75: (2, 3), 0.36: (6, 12), 0.0: (4, 6), 1.0: (0, 0)}[lam]
    rows = {(max(y - cut_height // 2, 0), min(y + (cut_height + 1) // 2, height)) for y in range(height)}
    columns = {(max(x - cut_width // 2, 0), min(x + (cut_width + 1) // 2, width)) for x in range(width)}
    boxes = sides(weight)
    if lam < 1:
        found_boxes = {((y, y + h), (x, x + w)) for y, x, h, w in boxes.tolist()}
        assert found_boxes == {(row, column) for row in rows for column in columns}
    # Lambda is what the clipped box leaves of the image.
    np.testing.assert_allclose(found.lam, weight.mean(axis=(1, 2)), rtol=1e-6, atol=1e-7)


@pytest.mark.peer
def test_draws_are_distributed_as_timms():
    module = load("mixup")
    height, width, count = 24, 32, 4000
    np.random.seed(0)  # noqa: NPY002 (timm draws from the global generator)
    transform = module.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, switch_prob=0.5, num_classes=10)
    lams, weights, kinds = [], [], []
    for _ in range(count):
        lam, cutmix = transform._params_per_batch()
        weight = np.full((height, width), lam)
        if cutmix:
            (top, bottom, left, right), lam = module.cutmix_bbox_and_lam((3, height, width), lam)
            weight[:] = 1
            weight[top:bottom, left:right] = 0
        lams.append(lam)
        weights.append(weight)
        kinds.append(0 if lam == 1 else 2 if cutmix else 1)
    theirs, kinds = mix.Mix(np.asarray(lams), np.stack(weights)), np.asarray(kinds)
    ours = draws(count, height, width, prob=0.8)
    our_kinds = np.where(ours.lam == 1, 0, np.where(is_cutmix(ours), 2, 1))
    assert_same_distribution(our_kinds, kinds)
    assert_same_distribution(ours.lam[our_kinds == 1], theirs.lam[kinds == 1])
    assert_same_distribution(ours.lam[our_kinds == 2], theirs.lam[kinds == 2])
    for side in range(4):
        assert_same_distribution(sides(ours.weight[our_kinds == 2])[:, side], sides(theirs.weight[kinds == 2])[:, side])


@pytest.mark.peer
@pytest.mark.parametrize("cutmix", [False, True])
def test_mixed_batches_are_timms(monkeypatch, cutmix):
    torch = pytest.importorskip("torch")
    module = load("mixup")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 5, 7, 3), np.uint8)
    labels = rng.integers(0, 4, 6)
    lam, weight = 0.3137, np.full((5, 7), 0.3137)
    if cutmix:
        weight = np.ones((5, 7))
        weight[1:4, 2:7] = 0
        lam = weight.mean()
        monkeypatch.setattr(module, "cutmix_bbox_and_lam", lambda *args, **options: ((1, 4, 2, 7), lam))
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": 4, "label_smoothing": 0.1}
    monkeypatch.setattr(module.Mixup, "_params_per_batch", lambda self: (lam, cutmix))
    floats = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    images, targets = module.Mixup(**options)(floats, torch.from_numpy(labels))
    eight_bit, targets_too = module.FastCollateMixup(**options)(
        [(image.transpose(2, 0, 1).copy(), int(label)) for image, label in zip(pixels, labels, strict=True)]
    )

    ones, how = np.ones(6, np.float32), mixture(lam, weight)
    ours = mix.smooth(mix_targets(labels, labels[::-1], ones, how, 4), 0.1)
    np.testing.assert_allclose(ours, targets.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours, targets_too.numpy(), atol=1e-6)
    found = mix_images(pixels.astype(np.float32), pixels[::-1].astype(np.float32), ones, how)
    np.testing.assert_allclose(found, images.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    found = mix_images(pixels, pixels[::-1], ones, how)
    np.testing.assert_array_equal(found, eight_bit.numpy().transpose(0, 2, 3, 1))
