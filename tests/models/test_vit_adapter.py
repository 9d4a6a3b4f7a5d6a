"""ViT-Adapter and UperNet against tests/reference/torch_{vit_adapter,upernet}.py in float64: parity of all outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from tests import quick
from tests.models import families
from tests.models.compare import assert_close
from tests.reference import cases
from tests.reference.vit_adapter_cases import CASES, MORE

# Gradients of biases before a BatchNorm, which are nothing but rounding.
IDLE = (
    "grad up.bias",
    "grad spm.fc1.bias",
    "grad backbone.up.bias",
    "grad backbone.spm.fc1.bias",
    "grad backbone.norm1.bias",
    "grad backbone.norm2.bias",
)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "default", "lape"),
    quick.first(
        0,  # of the first, tests/port/test_vit_adapter.py has every shape
        [
            ("upernet_vit_adapter_ti", 36_062_428, 4_608),
            ("upernet_vit_adapter_s", 57_614_908, 9_216),
            ("vit_adapter_ti", 7_966_640, 4_608),
            ("vit_adapter_s", 27_503_888, 9_216),
        ],
    ),
)
def test_published_parameter_counts(name, default, lape):
    assert count(models.create(name, join="default").param_shapes()) == default
    model = models.create(name)
    assert (model.joining, model.grid, model.drop_path) == ("lape", (14, 14), 0.1 if "ti" in name else 0.2)
    assert count(model.param_shapes()) == default + lape


# ---- Parity ----------------------------------------------------------------------------------------------------------


def evaluated(case, **settings):
    """The outputs, what is `kept` of them as "logits"."""
    with jax.enable_x64(True):
        model = families.adapter(case, **settings)
        variables = port.from_torch(case.state(), model)
        found = quick.jit(model.apply)(variables, jnp.asarray(case.images()))
        named = families.adapter_outputs(case, found)
    return {("logits" if name == case.kept else name): np.asarray(value) for name, value in named.items()}


def trained(case, **settings):
    """What `tests.reference.vit_adapter_answers.answer` has of training."""
    with jax.enable_x64(True):
        model = families.adapter(case, **settings)
        variables, images = port.from_torch(case.state(), model), jnp.asarray(case.images())

        def loss(params, stats):
            given = {"params": params, "batch_stats": stats}
            found, moved = model.apply(given, images, train=True, mutable=["batch_stats"])
            found = families.adapter_outputs(case, found)
            total = sum(jnp.sum(found[name] * value) for name, value in case.cotangents().items())
            return total, (found, moved["batch_stats"])

        run = quick.jit(jax.grad(loss, has_aux=True))
        gradients, (found, moved) = run(variables["params"], variables["batch_stats"])
        state = port.to_torch(jax.tree.map(np.asarray, {"params": gradients, "batch_stats": moved}), model)
    answer = {f"train {name}": np.asarray(value) for name, value in found.items()}
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            answer[f"{'moved' if '.running_' in name else 'grad'} {name}"] = value
    return answer


def test_goldens_are_those_of_the_cases():
    names = {case.name for case in CASES}
    assert set(families.goldens("vit_adapter")) == names | {f"{name} trained" for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_evaluation_matches_goldens(case):
    families.assert_golden(evaluated(case), families.goldens("vit_adapter")[case.name])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_matches_goldens(case):
    answer = trained(case)
    stored = families.goldens("vit_adapter")[f"{case.name} trained"]
    answer["logits"] = answer[f"train {case.kept}"]
    found, logits = cases.golden(answer), answer["logits"].size
    assert stored.shape == found.shape
    assert_close("outputs", found[:logits], stored[:logits], families.TOLERANCE)
    names = [name for name in sorted(answer) if name != "logits"]
    for name, row, expected in zip(names, found[logits:].reshape(-1, 4), stored[logits:].reshape(-1, 4), strict=True):
        scale = 1.0 if name in IDLE else max(expected[0], families.NOTHING)
        assert_close(f"sketch of {name}", row, expected, families.TOLERANCE, scale=scale)


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *MORE], ids=lambda case: case.name)
def test_matches_the_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import vit_adapter_answers

    ours, theirs = evaluated(case) | trained(case), vit_adapter_answers.answer(case)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = 1.0 if name in IDLE else max(np.abs(value).max(), families.NOTHING)
        assert_close(name, ours[name], value, families.TOLERANCE, scale=scale)


@pytest.mark.slow
def test_unrolled_and_with_remat_it_trains_alike():
    case = CASES[2]
    expected = trained(case)
    for settings in ({"unroll": 4}, {"remat": "full"}, {"remat": "attention", "attention": "xla"}):
        found = trained(case, **settings)
        for name, value in expected.items():
            scale = 1.0 if name in IDLE else max(np.abs(value).max(), families.NOTHING)
            assert_close(name, found[name], value, 1e-11 if name not in IDLE else 1e-9, scale=scale)
