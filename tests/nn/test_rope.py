"""Rotary position embeddings: angles and turns by hand, what they change and what not, and who can have them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.nn import rope
from lape_jax.nn.attention import Attention
from lape_jax.nn.big_vision import HeadwiseAttention
from lape_jax.nn.rope import Rope

AXIAL, MIXED, DINOV3 = (Rope(kind, (2, 3)) for kind in ("rope_axial", "rope_mixed", "rope_dinov3"))


def count(**settings):
    return sum(leaf.size for leaf in jax.tree.leaves(models.create("deit_ti", **settings).param_shapes()))


def test_angles_by_hand():
    # heads of 8 channels: the frequencies are 1 and 1/10, of the column and then of the row
    patch = 1 * 3 + 2
    np.testing.assert_allclose(rope.fixed_angles(AXIAL, 8)[patch], [2, 0.2, 1, 0.1], rtol=1e-15)
    # two rows lie at -1/2 and 1/2, three columns at -2/3, 0 and 2/3; row first
    expected = 2 * math.pi * np.array([1 / 2, 1 / 20, 2 / 3, 2 / 30])
    np.testing.assert_allclose(rope.fixed_angles(DINOV3, 8)[patch], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("kind", "pairs"), [(AXIAL, [(0, 1), (2, 3)]), (MIXED, [(0, 1), (2, 3)]), (DINOV3, [(0, 2), (1, 3)])]
)
def test_turns_by_hand(kind, pairs):
    # one head of 4 channels, two tokens before the patches; the last patch lies in row 1, column 2
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2 + 6, 4)), jnp.float32)
    freqs = jnp.asarray([[[0.5, 2.0]], [[-1.0, 0.25]]]) if kind is MIXED else None
    angles = [2 * 0.5 - 1, 2 * 2 + 0.25] if kind is MIXED else rope.fixed_angles(kind, 4)[-1]
    y = rope.turn(x, kind, freqs, 1)
    np.testing.assert_array_equal(y[:, :2], x[:, :2])
    for (a, b), angle in zip(pairs, angles, strict=True):
        turned = complex(x[0, -1, a], x[0, -1, b]) * complex(math.cos(angle), math.sin(angle))
        np.testing.assert_allclose([y[0, -1, a], y[0, -1, b]], [turned.real, turned.imag], rtol=1e-5)


@pytest.mark.parametrize("kind", ["rope_axial", "rope_mixed", "rope_dinov3"])
def test_products_depend_on_how_far_places_are_apart(kind):
    """Two heads; the same query everywhere and the same key everywhere."""
    rng = np.random.default_rng(1)
    q, k = (np.broadcast_to(rng.standard_normal(16), (1, 12, 16)) for _ in range(2))
    with jax.enable_x64(True):
        freqs = jnp.asarray(rng.standard_normal((2, 2, 4))) if kind == "rope_mixed" else None
        turned = [np.asarray(rope.turn(jnp.asarray(x), Rope(kind, (3, 4)), freqs, 2))[0] for x in (q, k)]
    for head in (slice(0, 8), slice(8, 16)):
        products = (turned[0][:, head] @ turned[1][:, head].T).reshape(3, 4, 3, 4)
        np.testing.assert_allclose(products[:-1, :-1, :-1, :-1], products[1:, 1:, 1:, 1:], rtol=1e-12)
        assert np.ptp(products) > 0.1


def test_angles_are_float32_for_tokens_of_16_bits():
    """At column 1000 a bfloat16 angle would be off by up to 2: the answer is the float32 one, rounded once."""
    far = Rope("rope_axial", (1, 1001))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 1001, 8)), jnp.bfloat16)
    expected = rope.turn(x.astype(jnp.float32), far, None, 1).astype(jnp.bfloat16)
    np.testing.assert_array_equal(rope.turn(x, far, None, 1), expected)


def test_initial_frequencies_are_two_axes_in_a_direction_for_each_head():
    found = np.asarray(rope.frequencies(jax.random.key(0), (2, 3, 8)))
    sizes = 10.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), np.tile(sizes, (3, 2)), rtol=1e-5)
    first, second = found[..., :4], found[..., 4:]
    np.testing.assert_allclose((first * second).sum(0), 0, atol=1e-6)
    directions = np.arctan2(found[1], found[0])[:, 0]
    assert np.abs(np.diff(directions)).min() > 0.05


def test_projections_of_their_own_are_turned_alike():
    rng = np.random.default_rng(3)
    kernels, biases = rng.standard_normal((4, 8, 2, 4)), rng.standard_normal((3, 2, 4))
    out = {"kernel": kernels[3].transpose(1, 2, 0), "bias": np.zeros(8)}
    freqs, x = rng.standard_normal((2, 2, 2)), jnp.asarray(rng.standard_normal((1, 7, 8)), jnp.float32)
    parts = zip(("query", "key", "value"), kernels[:3], biases, strict=True)
    apart = {name: {"kernel": kernel, "bias": bias} for name, kernel, bias in parts}
    fused = {"kernel": np.concatenate([k.reshape(8, 8) for k in kernels[:3]], 1), "bias": biases.reshape(-1)}
    proj = {"kernel": out["kernel"].reshape(8, 8), "bias": out["bias"]}
    one = Attention(2, rope=MIXED).apply({"params": {"qkv": fused, "proj": proj, "freqs": freqs}}, x, False)
    other = HeadwiseAttention(2, rope=MIXED).apply({"params": {**apart, "out": out, "freqs": freqs}}, x, False)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pe": "rope_axial"}, 5_717_416 - 37_824),
        ({"pe": "rope_dinov3"}, 5_717_416 - 37_824),
        ({"pe": "rope_mixed"}, 5_717_416 - 37_824 + 2_304),
        ({"pe": "learnable+rope_mixed"}, 5_722_024 + 2_304),
    ],
)
def test_parameter_count(settings, expected):
    assert count(**settings) == expected


def test_joinings_without_a_table():
    assert models.create("deit_ti", pe="rope_mixed").joining == "default"
    assert models.create("deit_ti", pe="learnable+rope_mixed").joining == "lape"
    with pytest.raises(UserError, match=r"or a table such as pe='learnable\+rope_mixed'"):
        models.create("deit_ti", pe="rope_mixed", join="lape")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("deit_ti", {"pe": "rope_axial", "heads": 32}, "width=192 over heads=32 makes 6 channels, .* divisible by 4"),
        ("deit_ti", {"pe": "rope"}, "pe='rope' is not one of learnable, .*rope_axial"),
        ("swin_t", {"pe": "rope_axial"}, "pe='rope_axial' is not one of learnable, "),
    ],
)
def test_wrong_settings_are_user_errors(name, settings, message):
    with pytest.raises(UserError, match=message):
        models.create(name, **settings)
