import math

import jax
import numpy as np
import pytest
import scipy.stats

from lape_jax.augment import operations, randaugment
from lape_jax.augment.operations import IDENTITY, NAMES, Drawn
from lape_jax.augment.randaugment import OPERATIONS, RandAugment, arguments, parse
from lape_jax.augment.warp import BICUBIC, BILINEAR
from lape_jax.errors import UserError
from tests.augment import timm_peer
from tests.augment.samples import assert_frequencies, images, to_pillow
from tests.quick import jit

FILL = (124, 116, 104)
RECIPE = "rand-m9-mstd0.5-inc1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (RECIPE, RandAugment(9, 0.5, True)),
        ("rand", RandAugment()),
        ("rand-n3-p0.7-inc0", RandAugment(layers=3, probability=0.7)),
        ("rand-mstd101-m5-mmax20", RandAugment(5, math.inf, maximum=20)),
        ("rand-m0", RandAugment(0)),
    ],
)
def test_names(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize(
    "name", ["rand-", "rand-m", "rand-x3", "rand-m9-m8", "rand-m9.5", "rand-tweights", "rand-9", ""]
)
def test_malformed_names_say_what_is_wrong(name):
    with pytest.raises(UserError, match="policy") as error:
        parse(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["randaugment-m9", "rand-n0", "rand-p1.5", "rand-mmax0", "augmix-m3"])
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(UserError, match="must begin with"):
        parse(name)


def test_arguments_by_hand():
    def at(*given):
        return {name: float(value) for name, value in arguments(*given).items()}

    strong = at(9.0, -1.0, True)
    expected = {"rotate": -27, "shear_x": -0.27, "translate_y": -0.405, "color": 0.19, "sharpness": 0.19}
    expected |= {"posterize": 1, "solarize": 26, "solarize_add": 99}
    assert {name: strong[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert at(9.0, 1.0, True)["contrast"] == pytest.approx(1.81)
    full = at(10.0, -1.0, True)
    assert [full[name] for name in ("posterize", "solarize", "solarize_add")] == [0, 0, 110]
    assert full["brightness"] == pytest.approx(0.1)
    other = at(9.0, -1.0, False)
    assert [other[name] for name in ("posterize", "solarize")] == [3, 230]
    assert other["color"] == pytest.approx(1.72)  # whatever the sign
    assert set(strong) == set(OPERATIONS) == set(NAMES) - {"identity"}


@pytest.fixture(scope="module")
def drawn():
    settings = parse(RECIPE)
    draw = jit(jax.vmap(lambda key: randaugment.draw(key, settings, (BILINEAR, BICUBIC))))
    return Drawn(*map(np.asarray, draw(jax.random.split(jax.random.key(3), 40_000))))


def test_each_operation_is_drawn_equally_often_and_half_of_them_applied(drawn):
    assert drawn.operation.shape == (40_000, 2)
    for layer in drawn.operation.T:
        assert_frequencies(layer, [15 if name == "identity" else 1 for name in NAMES])


def test_the_two_operations_are_independent(drawn):
    both = (drawn.operation != IDENTITY).all(1)
    pairs = drawn.operation[both]
    assert_frequencies(16 * pairs[:, 0] + pairs[:, 1], [i >= 16 and i % 16 >= 1 for i in range(256)])
    assert_frequencies((drawn.operation != IDENTITY).sum(1), [1, 2, 1])


def test_methods_are_drawn_equally_often(drawn):
    assert_frequencies(drawn.method, [method in (BILINEAR, BICUBIC) for method in range(3)])


@pytest.mark.parametrize(("name", "unit"), [("rotate", 3), ("shear_y", 0.03), ("translate_x", 0.045)])
def test_levels_are_normal_and_clipped_and_signs_even(drawn, name, unit):
    levels = drawn.argument[drawn.operation == NAMES.index(name)] / unit
    assert_frequencies(levels > 0, [1, 1])
    sizes = np.abs(levels)
    assert sizes.max() <= 10.0001
    assert (sizes > 9.999).mean() == pytest.approx(scipy.stats.norm.sf(2), abs=0.01)
    below = sizes[sizes < 9.99]
    limit = scipy.stats.norm.cdf(9.99, 9, 0.5)
    assert scipy.stats.kstest(below, lambda x: scipy.stats.norm.cdf(x, 9, 0.5) / limit).pvalue > 1e-4


def test_signs_levels_and_methods_are_independent(drawn):
    rotated = drawn.operation == NAMES.index("rotate")
    positive, strong = drawn.argument[rotated] > 0, np.abs(drawn.argument[rotated]) > 3 * 9
    assert_frequencies(4 * positive + 2 * strong + (drawn.method[rotated] == BICUBIC), np.ones(8))


def test_factors_go_both_ways(drawn):
    factors = drawn.argument[np.isin(drawn.operation, [NAMES.index(name) for name in ("color", "sharpness")])]
    assert_frequencies(factors > 1, [1, 1])
    assert scipy.stats.kstest(np.abs(factors - 1) / 0.09, _clipped_normal).pvalue > 1e-4


def _clipped_normal(x):
    return np.where(x < 10 - 1e-5, scipy.stats.norm.cdf(x, 9, 0.5), 1)


def test_infinite_std_draws_levels_uniformly():
    settings = parse("rand-m8-mstd101-n1-p1")
    draw = jit(jax.vmap(lambda key: randaugment.draw(key, settings, (BICUBIC,))))
    found = draw(jax.random.split(jax.random.key(0), 20_000))
    levels = np.abs(found.argument[found.operation == NAMES.index("rotate")]) / 3
    assert scipy.stats.kstest(levels, scipy.stats.uniform(0, 8).cdf).pvalue > 1e-4
    assert not (np.asarray(found.operation) == IDENTITY).any()


@pytest.mark.parametrize("name", [RECIPE, "rand-m7-n3-p0.6", "rand-mstd101-inc1-mmax12", "rand"])
@pytest.mark.peer
def test_settings_are_those_of_timm(name):
    peer = timm_peer.load("auto_augment").rand_augment_transform(name, {})
    ours = parse(name)
    first = peer.ops[0]
    assert (ours.magnitude, ours.std, ours.probability) == (first.magnitude, first.magnitude_std, first.prob)
    assert ours.layers == peer.num_layers
    assert ours.maximum == (first.magnitude_max or 10)
    assert ours.increasing == ("SolarizeIncreasing" in [op.name for op in peer.ops])
    assert len(peer.ops) == len(OPERATIONS)
    assert peer.choice_weights is None


PEER_NAMES = {
    "solarize_add": "SolarizeAdd",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
    "autocontrast": "AutoContrast",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
}


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.peer
def test_each_operation_at_each_level_agrees_with_timm(increasing, monkeypatch):
    """Photometric operations to the bit, the others within 1 grey level; signs are forced."""
    timm = timm_peer.load("auto_augment")
    settings = {"interpolation": timm.Image.Resampling.BICUBIC, "img_mean": FILL}
    apply = jit(lambda image, drawn: operations.apply(image, drawn, FILL))
    photo = images()[0]
    for name in OPERATIONS:
        peer_name = PEER_NAMES.get(name, name.capitalize())
        if increasing and f"{peer_name}Increasing" in timm.NAME_TO_OP:
            peer_name += "Increasing"
        peer = timm.AugmentOp(peer_name, prob=1.0, hparams=settings)
        for level in (0, 3, 5, 7.3, 9, 10):
            for sign in (-1.0, 1.0):
                argument = np.float32(arguments(level, sign, increasing)[name])
                if name == "posterize" and argument == 0:
                    continue  # black, as timm has it; newer Pillows refuse
                peer.magnitude = level
                monkeypatch.setattr(timm.random, "random", lambda sign=sign: 0.9 if sign < 0 else 0.1)
                drawn = Drawn(np.asarray([NAMES.index(name)]), np.asarray([argument]), np.asarray([BICUBIC]))
                difference = np.asarray(apply(photo, drawn)).astype(int) - np.asarray(peer(to_pillow(photo)))
                assert np.abs(difference).max() <= (name in operations.GEOMETRIC), f"{name} {level} {sign}"
