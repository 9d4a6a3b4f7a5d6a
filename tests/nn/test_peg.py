"""Positional encoding generators: the convolution by hand, and their place between the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.nn.peg import PEG
from tests.models import stepwise

TINY = {"num_classes": 3, "image_size": 8, "patch_size": 4, "in_channels": 1, "width": 8, "depth": 3, "heads": 2}


def test_by_hand():
    # One channel is enough to see the taps: the kernel's digits say which neighbour they weigh. The second channel has
    # a kernel of zeros and a bias.
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[:, :, 0, 0] = [[1, 10, 100], [1000, 0, 2000], [200, 20, 2]]
    params = {"proj": {"kernel": kernel, "bias": np.array([0, 0.5], np.float32)}}
    x = np.zeros((1, 1 + 6, 2), np.float32)
    x[0, 0] = 7  # a class token
    x[0, 1:, 0] = [1, 2, 3, 4, 5, 6]  # two rows of three patches
    y = np.asarray(PEG((2, 3)).apply({"params": params}, jnp.asarray(x)))
    np.testing.assert_array_equal(y[0, 0], 7)
    np.testing.assert_array_equal(y[0, 1:, 1], 0.5)
    added = [
        2000 * 2 + 20 * 4 + 2 * 5,
        1000 * 1 + 2000 * 3 + 200 * 4 + 20 * 5 + 2 * 6,
        1000 * 2 + 200 * 5 + 20 * 6,
        10 * 1 + 100 * 2 + 2000 * 5,
        1 * 1 + 10 * 2 + 100 * 3 + 1000 * 4 + 2000 * 6,
        1 * 2 + 10 * 3 + 1000 * 5,
    ]
    np.testing.assert_array_equal(y[0, 1:, 0], x[0, 1:, 0] + np.array(added, np.float32))


def test_initial_values():
    params = PEG((1, 1)).init(jax.random.key(0), jnp.zeros((1, 1, 4096)))["params"]["proj"]
    assert not params["bias"].any()
    np.testing.assert_allclose(params["kernel"].std(), np.sqrt(2 / 9), rtol=0.02)


@pytest.mark.parametrize(("pe", "count"), [("peg", 1), ("learnable+peg", 5), ("sincos_2d+relative+peg", 1)])
def test_parameter_count(pe, count):
    # 9 weights and a bias in each of 192 channels
    rest = pe.removesuffix("peg").removesuffix("+") or "none"
    sizes = {
        kind: sum(leaf.size for leaf in jax.tree.leaves(models.create("deit_ti", **settings).param_shapes()))
        for kind, settings in {"with": {"pe": pe, "peg_blocks": count}, "without": {"pe": rest}}.items()
    }
    assert sizes["with"] - sizes["without"] == count * 1_920


@pytest.mark.slow
def test_place_in_the_model():
    """A PEG changes the tokens from its block on, never the PE that LaPE delivers; segments are the whole."""
    model = models.create("vit_micro", pe="learnable+peg", join="lape", peg_blocks=2, **TINY)
    without = models.create("vit_micro", pe="learnable", join="lape", **TINY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32), model.param_shapes())
    images = jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)

    def forward(params):
        logits, out = model.apply({"params": params}, images)
        shared = {name: leaf for name, leaf in params.items() if "peg" not in name}
        return logits, out, without.apply({"params": shared}, images)[1]

    logits, out, plain = stepwise.run(forward, params)
    np.testing.assert_array_equal(out["pe"], plain["pe"])
    np.testing.assert_array_equal(out["tokens"][0], plain["tokens"][0])
    assert (np.abs(out["tokens"][1] - plain["tokens"][1]).max((0, 2)) > 1e-3).all()  # through attention, all tokens

    def in_segments(params):
        def run(module):
            carry, _ = module.embed(images)
            for first, count in ((0, 1), (1, 2)):
                carry, part = module.encode(carry, first=first, count=count)
            return module.norm(carry.tokens), part["tokens"]

        return model.apply({"params": params}, method=run)

    encoded, last = stepwise.run(in_segments, params)
    np.testing.assert_allclose(encoded, out["encoded"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, out["tokens"][1:], rtol=1e-5, atol=1e-5)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pe": "peg", "join": "lape"}, "or a table such as pe='learnable\\+peg'"),
        ({"pe": "relative+peg", "join": "lape"}, "or a table such as pe='learnable\\+relative\\+peg'"),
        ({"pe": "peg+learnable"}, r"pe='peg\+learnable' is not one of learnable, .*, peg, learnable.relative, "),
        ({"pe": "peg", "peg_blocks": 0}, "peg_blocks=0 is not between 1 and depth=12"),
        ({"pe": "peg", "peg_blocks": 13}, "peg_blocks=13 is not between 1 and depth=12"),
        (
            {"peg_blocks": 5},
            "peg_blocks=5 is for a pe such as 'peg' or 'learnable\\+peg', and pe='learnable' has no PEG",
        ),
    ],
)
def test_wrong_settings_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message):
        models.create("deit_ti", **settings)
