"""Models with rotary position embeddings against the references of tests/reference in float64, and as they run."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.port import params, segmenter, vit
from tests import quick
from tests.models import compare, families
from tests.models.compare import assert_close
from tests.reference.rope_cases import ADAPTERS, SEGMENTERS, VITS

FIRST = ("lape-learnable+rope_mixed-layernorm-layer_scale",)
each_vit = quick.cases(VITS, FIRST)
each_segmenter = quick.cases(SEGMENTERS, ())
each_adapter = quick.cases(ADAPTERS, ())


def by_name(variables, model, table=vit) -> dict[str, np.ndarray]:
    """Entries as they are: `port.to_torch` would add a table's row to the class token."""
    flat = params.flatten(variables)
    return {
        entry.names[0]: np.array(
            entry.axes.to_torch(np.asarray(flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]))
        )
        for entry in table.entries({path: leaf.shape for path, leaf in flat.items()})
    }


@functools.cache
def answer(case) -> dict[str, np.ndarray]:
    return compare.answer(
        case, lambda f, x: quick.jit(f)(x), lambda gradients, model: by_name({"params": gradients}, model)
    )


@functools.cache
def segmented(case) -> dict[str, np.ndarray]:
    """What `torch_segmenter.answer` gives, by our model."""
    with jax.enable_x64(True):
        model = families.segmenter(case)
        weights = families.weights(model, segmenter)
        images, cotangent = jnp.asarray(case.images()), case.cotangent()

        def loss(params):
            logits, out = model.apply({"params": params}, images)
            return jnp.sum(logits * cotangent), {"logits": out["masks"], "pixels": logits}

        variables = port.from_torch(weights, model)["params"]
        gradients, found = jax.tree.map(np.asarray, quick.jit(jax.grad(loss, has_aux=True))(variables))
    named = by_name({"params": gradients}, model, segmenter)
    return found | {f"grad {name}": named[name] for name in weights}


@functools.cache
def adapted(case) -> dict[str, np.ndarray]:
    """What `make_rope.evaluated` gives, by our model."""
    with jax.enable_x64(True):
        model = families.adapter(case)
        found = quick.jit(model.apply)(port.from_torch(case.state(), model), jnp.asarray(case.images()))
        named = families.adapter_outputs(case, found)
    return {("logits" if name == case.kept else name): np.asarray(value) for name, value in named.items()}


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("rope")) == {case.name for case in (*VITS, *SEGMENTERS, *ADAPTERS)}


@each_vit
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("rope")[case.name])


@each_segmenter
def test_segmenters_match_goldens(case):
    families.assert_golden(segmented(case), families.goldens("rope")[case.name])


@each_adapter
def test_adapters_match_goldens(case):
    families.assert_golden(adapted(case), families.goldens("rope")[case.name])


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "case"),
    [(ours, case) for ours, some in ((answer, VITS), (segmented, SEGMENTERS), (adapted, ADAPTERS)) for case in some],
    ids=lambda given: getattr(given, "name", ""),
)
def test_matches_the_live_reference(ours, case):
    pytest.importorskip("torch")
    from tests.models.golden import make_rope

    theirs = next(function for function, some in make_rope.ANSWERS if case in some)(case)
    families.assert_same(ours(case), theirs)


@functools.cache
def gradient(**settings):
    """Of a model with more tokens than one block of queries has, of which each has its own place."""
    with jax.enable_x64(True):
        sizes = {"width": 16, "depth": 2, "heads": 2, "image_size": 68, "patch_size": 4, "num_classes": 3}
        model = models.create("deit_ti", pe="learnable+relative+rope_mixed", dtype="float64", **sizes, **settings)
        rng = np.random.default_rng(0)
        weights = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), model.param_shapes())
        images = jnp.asarray(rng.standard_normal((1, *model.input_shape)))
        loss = lambda weights: jnp.sum(model.apply({"params": weights}, images)[0] ** 2)  # noqa: E731
        return params.flatten({"params": quick.jit(jax.grad(loss))(weights)})


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"unroll": 2, "remat": "attention"}, {"attention": "blocks"}], ids=str)
def test_compiled_in_any_way_it_is_the_same(settings):
    expected, found = gradient(attention="xla"), gradient(**{"attention": "xla", **settings})
    for path, value in expected.items():
        assert_close(path, found[path], np.asarray(value), 1e-11)


@pytest.mark.parametrize(
    ("name", "settings", "path"),
    quick.first(
        1,
        [
            ("segmenter_ti_mask", {"image_size": 32}, "blocks/attn"),  # and not in the decoder
            ("ceit_ti", {"image_size": 32}, "blocks/attn"),  # and not in the attention of its class tokens
            ("vit_lite_7_4", {}, "blocks/attn"),
            ("cct_7_3x1", {}, "blocks/attn"),
            ("t2t_vit_7", {"image_size": 32}, "blocks/attn"),
            ("vit_ti_16", {"image_size": 32, "pool": "map"}, "Transformer/encoderblock/MultiHeadDotProductAttention_0"),
        ],
    ),
)
def test_other_families_have_them_in_the_same_place(name, settings, path):
    model = models.create(name, pe="rope_mixed", width=32, depth=2, heads=2, **settings)
    found = params.flatten(model.variable_shapes())
    assert {p: x.shape for p, x in found.items() if p.endswith("freqs")} == {f"{path}/freqs": (2, 2, 2, 8)}


@pytest.mark.slow
def test_it_is_exported_for_batches_of_any_size():
    sizes = {"width": 16, "depth": 2, "heads": 2, "image_size": 12, "patch_size": 4, "num_classes": 3}
    model = models.create("deit_ti", pe="learnable+rope_mixed", **sizes)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.variable_shapes())
    batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *model.input_shape), jnp.float32)
    run = jax.jit(lambda images: model.apply(weights, images)[0])
    program = jax.export.deserialize(jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(batch).serialize())
    images = jnp.asarray(rng.standard_normal((5, *model.input_shape)), jnp.float32)
    np.testing.assert_allclose(program.call(images), run(images), rtol=0, atol=1e-5)
