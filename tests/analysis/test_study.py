"""All numbers of a model, in a table, as arrays and as figures."""

import io
import re

import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.analysis import correlation, locality, study
from lape_jax.errors import UserError
from tests import quick
from tests.analysis.models import create, norm, tiny, variables_of
from tests.port.tiny import TINY

WIDE = {**TINY, "image_size": (24, 32)}  # 3 x 4 patches


@pytest.fixture(scope="module")
def lape():
    model = tiny(**WIDE | {"join": "lape"})
    return model, variables_of(model)


@pytest.fixture(scope="module")
def studies(lape):
    """LaPE with measurements, a relative bias, and a Swin."""
    model, variables = lape
    images = [jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 32, 3)), jnp.float32)]
    relative, swin = tiny(pe="relative+peg"), create("swin_t", pe="learnable+relative", join="default")
    return [
        study.study("lape", model, variables, images),
        study.study("relative", relative, variables_of(relative), images),
        study.study("swin", swin, variables_of(swin)),
    ]


@pytest.mark.slow
def test_what_a_study_has(lape, studies):
    model, variables = lape
    one, relative, swin = studies
    expected = correlation.maps(model, variables)
    for layer in range(2):
        np.testing.assert_array_equal(one.maps[layer].values, expected[layer].values)
        assert one.radius[layer] == locality.radius(expected[layer].values, (3, 4))
        assert one.background[layer] == locality.background(expected[layer].values)
        assert one.two_dness[layer] == locality.two_dness(expected[layer].values, (3, 4))
    assert one.lambdas.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert np.isfinite(one.ratio).all()
    assert (relative.table, relative.measured, len(relative.biases)) == (None, [], 2)
    assert relative.rms[0] == pytest.approx(np.sqrt((relative.biases[0] ** 2).mean()))
    assert np.isnan(swin.lambdas).all()
    assert [found.grid for found in swin.maps] == [(12, 12), (12, 12), (6, 6)]


@pytest.mark.slow
@pytest.mark.parametrize("join", quick.first(1, ["lape", "default"]))
def test_a_segmenter_is_studied_as_the_classifier_with_its_encoder(join):
    sizes = {key: value for key, value in WIDE.items() if key != "num_classes"}
    model = models.create("segmenter_ti_mask", **sizes, num_classes=3, join=join)
    variables = variables_of(model)
    classifier = model.classifier()
    encoder = {name: x for name, x in variables["params"].items() if name != "decoder"}
    head = variables_of(classifier)["params"]["head"]
    images = [jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 32, 3)), jnp.float32)]
    found = study.study("it", model, variables, images)
    expected = study.study("it", classifier, {"params": encoder | {"head": head}}, images)
    for one, other in zip(found.maps, expected.maps, strict=True):
        assert one.grid == other.grid == (3, 4)
        np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_allclose(found.lambdas, expected.lambdas, rtol=1e-5)
    np.testing.assert_allclose(found.ratio, expected.ratio, rtol=1e-5)


def test_the_size_of_what_is_seen_has_lambda_2_in_it():
    """It is that of lambda_2 LN(w), of which w alone tells nothing."""
    model = tiny(join="default")
    variables = variables_of(model)
    images = [jnp.asarray(np.random.default_rng(0).normal(size=(2, *model.input_shape)), jnp.float32)]
    stream = np.asarray(quick.jit(model.apply)(variables, images[0])[1]["stem"], np.float64)[:, 1:]
    w, norm1 = variables["params"]["pos_embed"][1:], variables["params"]["blocks"]["norm1"]
    normed = norm(w, norm1["scale"][0], norm1["bias"][0], 1e-6)
    expected = np.sqrt(np.mean((w.std(-1) / stream.std(-1))[..., None] ** 2 * normed**2))
    one, blind = study.study("it", model, variables, images), study.study("it", model, variables)
    assert one.rms[0] == pytest.approx(expected, rel=1e-4)
    assert abs(expected / np.sqrt((normed**2).mean()) - 1) > 0.1
    assert np.isnan(blind.rms).all()
    known, unknown = (
        [ax.get_title() for ax in study.figures([found])["locality"].axes if ax.lines] for found in (one, blind)
    )
    assert set(known) - set(unknown) == {study.MEASURES["rms"]}


def test_the_eps_of_the_maps(lape):
    model, variables = lape
    one = study.study("lape", model, variables, eps=1.0)
    expected = correlation.maps(model, variables, eps=1.0)
    np.testing.assert_array_equal(one.maps[1].values, expected[1].values)
    assert np.abs(expected[1].values - correlation.maps(model, variables)[1].values).max() > 1e-3


def test_numbers_have_the_keys_that_are_documented(studies):
    found = study.numbers(studies)
    assert found["labels"].tolist() == ["lape", "relative", "swin"]
    assert found["eps"] == 1e-5
    vectors = {"radius", "largest_radius", "background", "two_dness", "rms", "token_pe_ratio"}
    maps = {"grid", "correlation"}
    expected = {"labels", "eps", "0/table/correlation", "2/table/correlation"}
    for number, depth, more in ((0, 2, {"lambda"}), (1, 2, {"relative_bias"}), (2, 3, {"relative_bias"})):
        expected |= {f"{number}/{name}" for name in vectors}
        expected |= {f"{number}/layer{layer + 1}/{name}" for layer in range(depth) for name in maps | more}
    assert found.keys() == expected
    assert {key.rpartition("/")[2] for key in expected} <= set(re.findall(r"\w+", study.__doc__))
    assert found["0/layer2/correlation"].shape == (12, 12)
    assert found["0/layer2/lambda"].shape == (3, 12)
    assert found["1/layer1/relative_bias"].shape == (2, 4, 4)
    assert found["2/layer3/grid"].tolist() == [6, 6]


def test_the_table(studies):
    lines = study.text(studies[0]).splitlines()
    assert lines[0] == "lape"
    head = "layer radius largest background 2-D-ness PE_RMS tokens/PE lambda1 lambda2 lambda3"
    assert lines[1].split() == head.split()
    assert [line.split()[0] for line in lines[2:]] == ["1", "2"]
    assert lines[2].split()[1] == f"{studies[0].radius[0]:.3f}"
    assert lines[3].split()[-3:] == ["1.000", "1.000", "0.000"]
    assert study.text(studies[1]).splitlines()[2].split()[-4:] == ["-"] * 4
    assert study.text(studies[1]).splitlines()[2].split()[4] == "-"  # 2 x 2 patches


def images_of(figure):
    return [(ax.get_title(), ax.get_images()[0]) for ax in figure.axes if ax.get_images()]


def test_figures(studies):
    figures = study.figures(studies)
    assert list(figures) == ["correlation_token", "correlation_overall", "locality", "lambda"]
    token, overall = (images_of(figures[f"correlation_{kind}"]) for kind in ("token", "overall"))
    titles = ["the table", "layer 1", "layer 2", "layer 1", "layer 2", "the table", "layer 1", "layer 2", "layer 3"]
    assert [title for title, _ in token] == [title for title, _ in overall] == titles
    lape, relative, swin = studies
    # The centre of 3 x 4 is token 1, at (0, 1); of 12 x 12 it is (5, 5), which is (2, 2) on 6 x 6.
    np.testing.assert_allclose(token[1][1].get_array(), lape.maps[0].values[1].reshape(3, 4))
    np.testing.assert_allclose(token[8][1].get_array(), swin.maps[2].values[2 * 6 + 2].reshape(6, 6))
    np.testing.assert_allclose(overall[3][1].get_array(), relative.maps[0].values)
    assert {image.get_clim() for _, image in token} == {(0, 1)}
    fixed = [image.get_clim() == (0, 1) for _, image in overall]
    assert fixed == [False, True, True, False, False, False, False, False, False]
    assert "lambda" not in study.figures(studies[2:])


def test_chosen_token_and_layers(studies):
    shown = images_of(study.figures(studies[:2], token=3, layers=[2])["correlation_token"])
    assert [title for title, _ in shown] == ["the table", "layer 2", "layer 2"]
    np.testing.assert_allclose(shown[1][1].get_array(), studies[0].maps[1].values[3].reshape(3, 4))
    with pytest.raises(UserError, match="token=4 is not one of the 4 patches"):
        study.figures(studies[:2], token=4)
    with pytest.raises(UserError, match="layer 3 is not one of the 2 layers"):
        study.figures(studies[:2], layers=[2, 3])


def test_files(studies):
    contents = study.render(studies[:1], layers=[1])
    names = ("correlation_token", "correlation_overall", "locality", "lambda")
    assert set(contents) == {f"{name}.{form}" for name in names for form in ("png", "pdf")} | {"numbers.npz"}
    with np.load(io.BytesIO(contents["numbers.npz"])) as numbers:
        np.testing.assert_array_equal(numbers["0/layer2/correlation"], studies[0].maps[1].values)


def test_labels_that_differ(studies):
    one, other, _ = studies
    assert [s.label for s in study.distinct([one, other], ["a", "b"])] == ["lape", "relative"]
    assert [s.label for s in study.distinct([one, other, one], "abc")] == ["lape (a)", "relative", "lape (c)"]
    with pytest.raises(UserError, match=r"lape \(a\) is there twice"):
        study.distinct([one, one], "aa")
