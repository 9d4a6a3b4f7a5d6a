"""Equation 7 and energies on what models do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.analysis import activations
from lape_jax.errors import UserError
from tests import quick
from tests.analysis.models import create, norm, tiny, variables_of, without_branches


def images(model, count=3, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, *model.input_shape)).astype(dtype))


@pytest.mark.parametrize(
    "settings",
    quick.first(
        1,
        [
            {"join": "default", "pe": "learnable+peg", "pool": "gap"},
            {"join": "default"},
            {"join": "shared", "pe": "sincos_1d"},
            {"join": "unshared"},
        ],
    ),
    ids=str,
)
def test_the_rest_of_the_stream_is_the_tokens(settings):
    """Where no block adds anything, all layers have the same x~, but for what a PEG adds."""
    model = tiny(depth=3, **settings)
    variables = without_branches(variables_of(model))
    x = images(model)
    embedding = variables["params"]["patch_embed"]["proj"]["kernel"].reshape(-1, 32)
    patches = np.asarray(x).reshape(3, 2, 8, 2, 8, 3).swapaxes(2, 3).reshape(3, 4, -1)
    alpha = patches @ embedding + variables["params"]["patch_embed"]["proj"]["bias"]
    found = activations.layer_inputs(model, variables, x)
    assert len(found) == 3
    for layer, (stream, pe, _) in enumerate(found):
        if "peg" in model.pe and layer:
            kernel = variables["params"]["peg_0"]["proj"]
            before = np.pad(np.asarray(found[0][0]).reshape(3, 2, 2, 32), ((0, 0), (1, 1), (1, 1), (0, 0)))
            taps = [(i, j, before[:, i : i + 2, j : j + 2]) for i in range(3) for j in range(3)]
            encoding = sum(part * kernel["kernel"][i, j, 0] for i, j, part in taps) + kernel["bias"]
            expected = alpha + encoding.reshape(3, 4, 32)
        else:
            expected = alpha
        np.testing.assert_allclose((stream - pe)[:, model.num_prefix_tokens :], expected, rtol=0, atol=1e-3)


def test_default_by_numpy():
    """Lambdas and energies in float64 from the tokens that the model reports; batches of two sizes."""
    model = tiny(join="default", dtype="float64")
    with jax.enable_x64(True):
        variables = variables_of(model, np.float64)
        x = images(model, 3, np.float64)
        measured = activations.measure(model, variables, [x[:2], x[2:]])
        _, out = quick.jit(model.apply)(variables, x)
    params = variables["params"]
    w, norm1 = params["pos_embed"][1:], params["blocks"]["norm1"]
    streams = [out["stem"], out["tokens"][0]]
    for layer, one in enumerate(measured):
        both = np.asarray(streams[layer])[:, 1:]
        own, total = (both - w).std(-1), both.std(-1)
        l1, l2 = own / total, w.std(-1) / total
        expected = np.stack([l1, l2, 1 - l1 - l2]).mean(1)
        np.testing.assert_allclose(one.lambdas, expected, rtol=0, atol=1e-9)
        g, b = norm1["scale"][layer], norm1["bias"][layer]
        tokens, position = (l1[..., None] * norm(both - w, g, b, 0), l2[..., None] * norm(w, g, b, 0))
        # The model's own eps of 1e-6 is not seen beside variances of 1.
        assert one.token_energy == pytest.approx((tokens**2).mean(), rel=1e-5)
        assert one.pe_energy == pytest.approx((position**2).mean(), rel=1e-5)
        assert one.ratio == one.token_energy / one.pe_energy


def test_lape_by_numpy():
    model = tiny(join="lape")
    variables = variables_of(model)
    x = images(model)
    measured = activations.measure(model, variables, [x])
    _, out = quick.jit(model.apply)(variables, x)
    norm1 = variables["params"]["blocks"]["norm1"]
    streams = [out["stem"], out["tokens"][0]]
    for layer, one in enumerate(measured):
        assert one.lambdas.tolist() == [4 * [1], 4 * [1], 4 * [0]]
        tokens = norm(streams[layer], norm1["scale"][layer], norm1["bias"][layer], model.ln_eps)[:, 1:]
        assert one.token_energy == pytest.approx((tokens**2).mean(), rel=1e-4)
        assert one.pe_energy == pytest.approx((np.asarray(out["pe"][layer])[1:] ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize(("join", "told"), quick.first(1, [("lape", [True] * 3), ("default", [True, True, False])]))
def test_stages(join, told):
    """Behind a merging of tokens with their positions in them the two cannot be told apart."""
    model = create("swin_t", join=join, pe="learnable")
    measured = activations.measure(model, variables_of(model), [images(model, 1)])
    assert [one is not None for one in measured] == told
    assert [one.lambdas.shape for one in measured if one][:2] == [(3, 144), (3, 144)]


def test_stages_merge_tokens_as_the_model_does():
    model = create("swin_t", join="lape", pe="learnable")

    @jax.jit
    def both(variables, x):
        _, out = model.apply(variables, x)
        merged = model.apply(variables, out["tokens"][0][-1], method=lambda module, t: module.downsample[0](t))
        return activations.layer_inputs(model, variables, x)[-1], (merged, out["pe"][1][0])

    found, expected = both(variables_of(model), images(model, 1))
    for one, other in zip((found.stream, found.beside), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_nothing_to_measure():
    model = tiny(join="lape")
    with pytest.raises(UserError, match="no images"):
        activations.measure(model, variables_of(model), [])
    with pytest.raises(UserError, match="pe='relative' has no position table"):
        activations.measure(tiny(pe="relative"), {}, [])


def test_a_position_without_energy():
    assert activations.Measured(np.zeros((3, 1)), 2.0, 0.0).ratio == float("inf")
