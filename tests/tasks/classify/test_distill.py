"""Hard distillation on numbers worked out by hand, and what is said of teachers that do not fit."""

import math
import typing
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port import about
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify import distill
from lape_jax.tasks.config import base
from tests.quick import jit

LN2, LN3 = math.log(2), math.log(3)
SIZES = {"num_classes": 3, "image_size": 8, "in_channels": 1}


class Linear(nn.Module):
    """A model whose logits are the first pixel's channels times a matrix; in training as a student with two heads."""

    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        pixel = images[:, 0, 0].astype(self.dtype)
        if not train:
            return pixel @ self.get_variable("params", "teacher").astype(self.dtype), {}
        self.make_rng("dropout")  # raises if it is not given
        heads = pixel @ self.get_variable("params", "cls"), pixel @ self.get_variable("params", "dist")
        return sum(heads) / 2, {"heads": heads}


def images(*pixels):
    return jnp.asarray(pixels, jnp.float32)[:, None, None, :]


def teacher(*rows):
    return {"params": {"teacher": jnp.asarray(rows, jnp.float32)}}


# ---- The pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_labels_are_the_teachers_largest_logits(dtype):
    pixels = images([1, 0], [0, 1], [1, 1], [-1, 0])
    labels = distill.hard_labels(Linear(dtype), teacher([0, 3, 3], [4, 0, 2]), pixels)  # logits 033 402 435 0-3-3
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [1, 0, 2, 0]  # of equal ones the lowest


@pytest.mark.slow
def test_a_real_teacher_is_asked_in_evaluation_mode():
    """A distilled teacher with dropout: one answer, from the mean of its heads."""
    model = models.create("vit_micro", **SIZES, width=8, depth=1, heads=2, distilled=True, dropout=0.5)
    pixels = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = jax.tree.map(lambda x: 20 * x, jit(model.init)(jax.random.key(0), pixels))

    @jit
    def answers(variables, pixels):
        logits, _ = model.apply(variables, pixels, train=False)
        return distill.hard_labels(model, variables, pixels), jnp.argmax(logits, 1)

    labels, expected = answers(variables, pixels)
    assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        # Class head p = (1/4, 3/4) for targets (3/4, 1/4): 2 ln 2 - ln 3 / 4. Distillation head p = (2/3, 1/3): ln 3.
        (0.0, 2 * LN2 - LN3 / 4),
        (1.0, LN3),
        (0.5, LN2 + 3 / 8 * LN3),
        (0.25, 1.5 * LN2 + LN3 / 16),
    ],
)
def test_loss_by_hand(alpha, expected):
    cls = jnp.asarray([[0, LN3], [5.0, 5.0]])
    dist = jnp.asarray([[LN2, 0], [-7.0, -7.0]])
    targets = jnp.asarray([[0.75, 0.25], [0.5, 0.5]])
    losses = distill.hard_distillation_loss(cls, dist, targets, jnp.asarray([1, 0]), alpha)
    np.testing.assert_allclose(losses, [expected, LN2], rtol=1e-6)


# ---- The loss of a batch ---------------------------------------------------------------------------------------------

BATCH = {
    "image": images([1, 0], [0, 1], [1, 1]),
    "target": jnp.asarray([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]),
    "label": jnp.asarray([0, 1, 0]),
    "mask": jnp.asarray([1.0, 1.0, 0.0]),
}
PARAMS = {"cls": jnp.asarray([[1.0, -1.0], [0.5, 0.0]]), "dist": jnp.asarray([[0.0, 0.5], [2.0, 1.0]])}
SAYS_10 = teacher([0, 1], [1, 0])  # of the two images that count
SAYS_01 = teacher([1, 0], [0, 1])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def by_hand(labels, alpha):
    """The summed loss over the two rows that count, and its gradient by the weights of both heads."""
    pixels, targets = np.eye(2), np.asarray(BATCH["target"][:2])
    taught = np.eye(2)[labels]
    p, q = softmax(np.asarray(PARAMS["cls"])), softmax(np.asarray(PARAMS["dist"]))
    loss = -(1 - alpha) * np.sum(targets * np.log(p)) - alpha * np.sum(taught * np.log(q))
    return loss, {"cls": (1 - alpha) * pixels.T @ (p - targets), "dist": alpha * pixels.T @ (q - taught)}


@pytest.mark.parametrize("alpha", [0.5, 0.1])
def test_training_loss_and_its_gradient(alpha):
    loss = jit(jax.value_and_grad(distill.training_loss(Linear(), Linear(), alpha), has_aux=True))
    for variables, labels in ((SAYS_10, [1, 0]), (SAYS_01, [0, 1])):
        (total, (sums, collections)), gradient = loss(PARAMS, {}, BATCH, jax.random.key(0), variables)
        expected, expected_gradient = by_hand(labels, alpha)
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        assert collections == {}
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), gradient, expected_gradient)
        # Both heads together say (1, -0.5) and (2.5, 1): class 0, right for the first.
        assert {name: float(x) for name, x in sums.items()} == {"loss": float(total), "top1": 1.0, "examples": 2.0}


def test_the_teacher_gets_no_gradient_and_is_no_constant():
    loss = distill.training_loss(Linear(), Linear(), 0.5)
    gradient = jit(jax.grad(lambda variables: loss(PARAMS, {}, BATCH, jax.random.key(0), variables)[0]))(SAYS_10)
    assert not np.any(gradient["params"]["teacher"])
    jaxpr = jax.make_jaxpr(loss)(PARAMS, {}, BATCH, jax.random.key(0), SAYS_10)
    assert [const for const in jaxpr.consts if const.size > 1] == []
    assert len(jaxpr.jaxpr.invars) == len(PARAMS) + len(BATCH) + 1 + 1


# ---- Which teacher ---------------------------------------------------------------------------------------------------


CLASSES = ("a", "b", "c")


def config(**distilling):
    settings = {"teacher": "", "model": "", "alpha": 0.5, **distilling}
    return SimpleNamespace(model=SimpleNamespace(name="vit_micro"), distill=SimpleNamespace(**settings))


def student(**settings):
    return models.create("vit_micro", **{**SIZES, "width": 8, "depth": 1, "heads": 2, "distilled": True, **settings})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The weights of a `vit_micro` with two patches in a row, for the students here."""
    model = models.create("vit_micro", **SIZES)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float16), model.param_shapes())
    path = tmp_path_factory.mktemp("teacher") / "teacher.npz"
    port.save(path, {"params": params}, model)
    return path


def test_a_teacher_from_a_file(file):
    model, variables = distill.load_teacher(
        config(teacher=str(file), model="vit_micro"), student(dtype="bfloat16"), CLASSES
    )
    assert (model.width, model.num_classes, model.input_shape, model.distilled) == (64, 3, (8, 8, 1), False)
    assert model.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert variables["params"]["head"]["kernel"].shape == (64, 3)


def test_a_distillation_token_and_a_teacher_need_each_other():
    distill.check(config(), student(distilled=False))
    distill.check(config(teacher="t.pth"), student())
    with pytest.raises(UserError, match=r"vit_micro has a distillation token, .* but config.distill.teacher is empty"):
        distill.check(config(), student())
    with pytest.raises(UserError, match=r"config.distill.teacher is 't.pth', but vit_micro has no distillation token"):
        distill.check(config(teacher="t.pth"), student(distilled=False))
    with pytest.raises(UserError, match="has no distillation token"):
        distill.check(config(teacher="t.pth"), models.create("regnety_160"))
    # A Segmenter's token has no head, and nothing to learn from a teacher.
    assert TASKS["segment"].teacher(base(), models.create("segmenter_ti_linear", distilled=True), ()) is None


@pytest.mark.parametrize(
    ("distilling", "settings", "message"),
    [
        ({"teacher": "no/such.pth"}, {}, "config.distill.teacher is 'no/such.pth', which does not exist: it must be"),
        ({"model": ""}, {}, "config.distill.model is empty: the weights in .*teacher.npz' need the name of their mod"),
        ({"model": "regnety_16"}, {}, r"config.distill.model: model 'regnety_16' .* \(did you mean 'regnety_160'\?\)"),
        pytest.param(
            {"model": "regnety_160"},
            {},
            r"^config.distill.teacher, read as regnety_160 for 3 .* \(0 of 369 fit\) .* the model has no blocks.",
            marks=pytest.mark.slow,  # its shapes take seconds
        ),
        (
            {},
            {"num_classes": 10},
            r"^config.distill.teacher, read as vit_micro for 10 classes and images of 8 x 8 pixels with 1 channel: "
            r".*teacher.npz: .* shapes differ: .*head.weight is \(3, 64\) and should be \(10, 64\)",
        ),
        ({}, {"image_size": 16}, r"16 x 16 pixels .*: pos_embed is \(1, 5, 64\) and should be \(1, 17, 64\)$"),
        (
            {"model": "segmenter_ti_linear"},
            {"image_size": 16},
            "is segmenter_ti_linear, which gives a class to each pixel",
        ),
        ({}, {"in_channels": 3}, r"with 3 channels: .*: patch_embed.proj.weight is \(64, 1, 4, 4\) and"),
    ],
)
def test_teachers_that_do_not_fit_are_user_errors(file, distilling, settings, message):
    with pytest.raises(UserError, match=message):
        distill.load_teacher(
            config(**{"teacher": str(file), "model": "vit_micro", **distilling}), student(**settings), CLASSES
        )


def saying(tmp_path, **changed):
    """A file that says what it is of, and a run's config for it as a teacher."""
    model = models.create("vit_micro", **SIZES, heads=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.param_shapes())
    known = {"mean": (0.5,), "std": (0.2,), "classes": CLASSES} | changed
    texts = about.write("vit_micro", model, known["mean"], known["std"], known["classes"])
    port.save(tmp_path / "teacher.safetensors", {"params": params}, model, metadata=texts)
    found = config(teacher=str(tmp_path / "teacher.safetensors"))
    found.data = base().data
    found.data.channels, found.data.mean, found.data.std = 1, (0.5,), (0.2,)
    return found


def test_a_file_that_says_what_it_is_of(tmp_path):
    model, _ = distill.load_teacher(saying(tmp_path), student(), CLASSES)
    assert model.heads == 2  # and not the four of a vit_micro


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("a", "c", "b")}, "knows other classes: 'c' there where 'b' is here"),
        ({"mean": (0.4,)}, r"was trained with data.mean \(0.4,\), and this run has \(0.5,\): the two must agree"),
    ],
)
def test_a_file_that_says_something_else(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        distill.load_teacher(saying(tmp_path, **changed), student(), CLASSES)
