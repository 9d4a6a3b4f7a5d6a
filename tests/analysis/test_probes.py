"""Probes of features and places: what they find where it is known what there is."""

import numpy as np
import pytest

from lape_jax import models
from lape_jax.analysis import features, position_probe, probes, resolution
from lape_jax.analysis.probes import Split
from lape_jax.analysis.resolution import Curve
from lape_jax.errors import UserError


def clusters(count, noise, seed):
    """Three classes at the corners of a triangle, beside a channel that is the same for all."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    corners = np.array([[1.0, 0], [-1, 0], [0, 2]])
    points = corners[classes] + noise * rng.standard_normal((count, 2))
    return Split(np.concatenate([points, np.full((count, 1), 7.0)], 1).astype(np.float32), classes)


@pytest.mark.slow
def test_what_is_easy_is_read_off_and_noise_is_not():
    train, test = clusters(150, 0.1, 0), clusters(60, 0.1, 1)
    assert probes.linear(train, test)[0] == 100
    assert probes.few_shot(train, test, 5) > 95
    noise = Split(np.random.default_rng(2).standard_normal((150, 3)), train.classes)
    assert probes.linear(noise, Split(test.features, test.classes))[0] < 60


def test_nearest_neighbours_by_hand():
    train = Split(np.array([[1.0, 0], [1, 0.1], [0, 1]]), np.array([0, 0, 1]))
    test = Split(np.array([[5.0, 0], [0, 2], [0.1, 3]]), np.array([0, 1, 0]))
    assert probes.knn(train, test, 2, neighbours=1) == pytest.approx(200 / 3)
    assert probes.knn(train, test, 2) == pytest.approx(200 / 3)  # near ones outweigh those that are more


def test_shots_need_images():
    with pytest.raises(UserError, match="50 images of each class: there are fewer"):
        probes.few_shot(clusters(60, 0.1, 0), clusters(6, 0.1, 0), 50)


def products(patches, grid, width=4, seed=0, told=0.0):
    """Of tokens that are noise, and tell row and column to a degree."""
    rng = np.random.default_rng(seed)
    row, column = (np.tile(axis.reshape(-1), patches) for axis in np.indices(grid))
    x = rng.standard_normal((len(row), width))
    x[:, 0] += told * row
    x[:, 1] += told * column
    z = np.concatenate([x, np.ones((len(row), 1)), row[:, None], column[:, None]], 1)
    return [z.T @ z], z


def test_places_are_read_as_least_squares_does():
    (train, shown), (test, asked) = products(50, (3, 4), told=0.5), products(50, (3, 4), seed=1, told=0.5)
    (found,) = position_probe.read(train, test)
    weights = np.linalg.lstsq(shown[:, :5], shown[:, 5:], rcond=None)[0]
    missed = asked[:, 5:] - asked[:, :5] @ weights
    spread = asked[:, 5:] - asked[:, 5:].mean(0)
    assert found.r2 == pytest.approx(1 - (missed**2).sum() / (spread**2).sum(), abs=1e-4)
    assert found.error == pytest.approx(np.sqrt((missed**2).sum(1).mean()), abs=1e-4)


def test_places_at_both_ends():
    chance = position_probe.read(products(200, (3, 4))[0], products(200, (3, 4), seed=1)[0])[0]
    assert abs(chance.r2) < 0.02
    assert chance.error == pytest.approx(np.sqrt(8 / 12 + 15 / 12), abs=0.02)
    perfect = position_probe.read(products(50, (3, 4), told=1e4)[0], products(50, (3, 4), seed=1, told=1e4)[0])[0]
    assert perfect.r2 > 0.999


def test_models_without_tokens_are_user_errors():
    with pytest.raises(UserError, match="a RegNet has no tokens to probe"):
        features.check_tokens(models.create("regnety_160"))


def test_fingerprints_tell_models_weights_and_data_apart():
    model = models.create("vit_micro", depth=1)
    weights = {"params": {"a": np.zeros(2)}}
    prints = {
        features.fingerprint(model, weights, {"n": 1}),
        features.fingerprint(model, weights, {"n": 2}),
        features.fingerprint(model.clone(join="default"), weights, {"n": 1}),
        features.fingerprint(model, {"params": {"a": np.ones(2)}}, {"n": 1}),
    }
    assert len(prints) == 4
    assert features.fingerprint(model, {"params": {"a": np.zeros(2)}}, {"n": 1}) in prints


def test_sizes():
    sizes = resolution.default_sizes(models.create("deit_ti"))
    assert sizes == [112, 128, 160, 192, 224, 256, 320, 384, 448, 512]
    with pytest.raises(UserError, match="64 x 32: sizes are those of square ones"):
        resolution.default_sizes(models.create("deit_ti", image_size=(64, 32)))


def test_a_table_of_sizes():
    curves = [Curve("a, b", 8, {8: {"val/top1": 50.0}, 16: {"val/top1": 25.0}}, ("val/top1", "top-1"))]
    assert resolution.table(curves).splitlines() == [
        "model,trained_at,image_size,val/top1",
        '"a, b",8,8,50.0',
        '"a, b",8,16,25.0',
    ]
