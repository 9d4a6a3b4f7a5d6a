"""The model under big_vision's conventions: what its trainer and evaluators do with a model, without them."""

import importlib
import logging
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.models.big_vision_vit import Model, load
from lape_jax.port.big_vision import canonical
from tests import quick
from tests.models import families
from tests.quick import jit
from tests.reference import big_vision_cases
from tests.reference.big_vision_cases import BigVisionCase

IMAGES = jnp.zeros((1, 8, 12, 3))


def config(case: BigVisionCase, **more) -> dict:
    """`config.model` of a case."""
    sizes = {"patch_size": case.patch, "width": case.width, "depth": case.depth, "mlp_dim": case.hidden}
    lape = {"join": case.join, "pe_norm": case.pe_norm, "cls_pe": case.cls_pe}
    options = {"pool_type": case.pool, "posemb": case.posemb, "rep_size": case.rep_size, "num_heads": case.heads}
    return {**sizes, **options, **lape, **more}


def shapes(model, images=IMAGES) -> dict:
    """The parameters' shapes by name, of `model.init(rng, images)` as the trainer calls it."""
    params = jax.eval_shape(model.init, jax.random.PRNGKey(0), images)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


# ---- Model -----------------------------------------------------------------------------------------------------------


def test_a_line_in_big_vision_makes_it_a_model_there(tmp_path, monkeypatch):
    package = tmp_path / "big_vision" / "models"
    package.mkdir(parents=True)
    (package / "lape_vit.py").write_text("from lape_jax.models.big_vision_vit import Model, load\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = ConfigDict(
        {"num_classes": 5, "model_name": "lape_vit", "model": {"variant": "S/16", "rep_size": True, "pool_type": "gap"}}
    )
    module = importlib.import_module(f"big_vision.models.{settings.model_name}")
    model = module.Model(num_classes=settings.num_classes, **settings.get("model", {}))
    found = shapes(model, jnp.zeros((1, 224, 224, 3)))
    assert found["pos_embedding"] == (1, 196, 384)
    assert found["head/bias"] == (5,)
    assert found["Transformer/encoderblock_11/pe_norm/scale"] == (384,)
    assert module.load is load
    for name in [name for name in sys.modules if name.split(".")[0] == "big_vision"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("case", big_vision_cases.CASES, ids=lambda case: case.name)
def test_names_and_shapes_of_parameters(case):
    assert shapes(Model(case.classes, **config(case))) == big_vision_cases.shapes(case)


def test_stacked_parameters():
    case = BigVisionCase()
    found = shapes(Model(3, **config(case, scan=True)))
    apart = big_vision_cases.shapes(case)
    blocks = {re.sub(r"_\d+/", "/", name, count=1): shape for name, shape in apart.items() if "encoderblock" in name}
    rest = {name: shape for name, shape in apart.items() if "encoderblock" not in name}
    assert found == rest | {name: (2, *shape) for name, shape in blocks.items()}


@pytest.mark.parametrize(
    ("variant", "width", "depth", "hidden", "patch"),
    [
        (None, 768, 12, 3072, 16),
        ("Ti/16", 192, 12, 768, 16),
        ("B/32", 768, 12, 3072, 32),
        ("So400m/14", 1152, 27, 4304, 14),
    ],
)
def test_variants(variant, width, depth, hidden, patch):
    found = shapes(Model(variant=variant, scan=True), jnp.zeros((1, 2 * patch, 2 * patch, 3)))
    assert found["embedding/kernel"] == (patch, patch, 3, width)
    assert found["Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"] == (depth, width, hidden)
    assert not any(name.startswith("head") for name in found)


def forward(case, scan=False):
    """Logits, `out` and parameters by name, of the case's weights in float64."""
    with jax.enable_x64(True):
        model = Model(case.classes, **config(case, dtype_mm="float64", scan=scan))
        weights = big_vision_cases.weights(case)
        images = jnp.asarray(big_vision_cases.images(case))
        params = unflatten_dict(canonical(weights) if scan else weights, sep="/")
        logits, out = jit(lambda params: model.apply({"params": params}, images, train=False))(params)
        return np.asarray(logits), jax.tree.map(np.asarray, out), weights


@pytest.mark.parametrize("scan", quick.first(1, [True, False]))
def test_logits_and_out(scan):
    case = BigVisionCase(pool="tok")
    logits, out, weights = forward(case, scan)
    np.testing.assert_allclose(logits.ravel(), families.goldens("big_vision")[case.name][:6], rtol=1e-9, atol=1e-9)
    block = dict.fromkeys(("sa", "+sa", "mlp", "+mlp"), (2, 7, 16))
    assert jax.tree.map(np.shape, out) == {
        "stem": (2, 2, 3, 16),
        "with_posemb": (2, 6, 16),
        "encoder": {"block00": block, "block01": block, "pre_ln": (2, 7, 16), "pe": (2, 7, 16)},
        "encoded": (2, 7, 16),
        "head_input": (2, 16),
        "pre_logits_2d": (2, 2, 3, 16),
        "pre_logits": (2, 16),
        "logits_2d": (2, 2, 3, 3),
        "logits": (2, 3),
    }
    close = np.testing.assert_allclose
    first, second = out["encoder"]["block00"], out["encoder"]["block01"]
    start = np.concatenate([np.broadcast_to(weights["cls"], (2, 1, 16)), out["with_posemb"]], axis=1)
    close(first["+sa"], start + first["sa"], rtol=1e-12)
    close(first["+mlp"], first["+sa"] + first["mlp"], rtol=1e-12)
    close(second["+sa"], first["+mlp"] + second["sa"], rtol=1e-12)
    close(out["encoder"]["pre_ln"], second["+mlp"], rtol=1e-12)
    close(out["with_posemb"].reshape(out["stem"].shape), out["stem"], rtol=1e-12)  # LaPE adds nothing to the tokens
    close(out["head_input"], out["encoded"][:, 0], rtol=1e-12)
    close(out["logits"], logits, rtol=1e-12)
    close(out["logits_2d"], out["pre_logits_2d"] @ weights["head/kernel"] + weights["head/bias"], rtol=1e-12)


@pytest.mark.slow
def test_default_joining_is_big_visions_own_model():
    case = BigVisionCase(join="default")
    logits, out, weights = forward(case)
    np.testing.assert_allclose(logits.ravel(), families.goldens("big_vision")[case.name][:6], rtol=1e-9, atol=1e-9)
    assert "pe" not in out["encoder"]
    posemb = weights["pos_embedding"].reshape(1, 2, 3, 16)
    np.testing.assert_allclose(out["with_posemb"].reshape(2, 2, 3, 16), out["stem"] + posemb, rtol=1e-12)


@pytest.mark.slow
def test_a_step_of_training_without_implicit_transfers():
    """What the trainer's `update_fn` does with a model, under its guard against transfers between host and device."""
    model = Model(3, variant="mu/4", depth=2, dropout=0.1, posemb="sincos2d", scan=True, dtype_mm="bfloat16")
    rng, images = jax.random.PRNGKey(0), jax.device_put(np.ones((2, 8, 8, 3), np.float32))

    def loss(params, rng, images):
        logits, _ = model.apply({"params": params}, images, train=True, rngs={"dropout": rng})
        assert logits.dtype == jnp.float32
        return jnp.mean(jax.nn.softplus(logits))

    with jax.transfer_guard("disallow"):
        params = jit(lambda rng: model.init(rng, jnp.zeros((1, 8, 8, 3)))["params"])(rng)
        gradients = jit(jax.grad(loss))(params, rng, images)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jnp.abs(gradients["head"]["bias"]).min() > 0


def test_as_one_tower_of_two():
    class Towers(nn.Module):
        @nn.compact
        def __call__(self, images):
            return Model(3, variant="mu/4", pool_type="map", name="img")(images, train=True)[0]

    found = shapes(Towers(), jnp.zeros((1, 8, 8, 3)))
    assert found["img/MAPHead_0/probe"] == (1, 1, 32)
    assert found["img/Transformer/encoderblock_0/pe_norm/bias"] == (32,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "XL/16"}, "variant='XL' is not one of mu, Ti, S"),
        ({"variant": "S/a"}, "variant='S' is not one of"),
        ({"pooltype": "gap"}, r"config.model.'pooltype' is not one of patch_size, .* \(did you mean 'pool_type'\?\)"),
        ({"remat_policy": "all"}, "remat_policy='all' is not one of nothing_saveable"),
        ({"posemb": "learned"}, "pe='learned' is not one of learnable"),
        ({"join": "laep"}, "join='laep' is not one of default"),
        ({"patch_size": (5, 5)}, r"image_size=\(8, 12\) is not divisible by patch_size=\(5, 5\)"),
    ],
)
def test_wrong_settings_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message):
        shapes(Model(3, **{"width": 16, "depth": 1, "num_heads": 2, "patch_size": (4, 4), **settings}))


# ---- load ------------------------------------------------------------------------------------------------------------


def inited(case, images=IMAGES, **more):
    """Initial parameters as the trainer has them."""
    params = jax.eval_shape(Model(case.classes, **config(case, **more)).init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7, leaf.dtype), params)


def stored(case, **changes) -> dict[str, np.ndarray]:
    """The case's weights as float32 by name, with other values or without (None) for some names."""
    found = {name: np.float32(value) for name, value in big_vision_cases.weights(case).items()} | changes
    return {name: value for name, value in found.items() if value is not None}


def flat(params):
    return flatten_dict(params, sep="/")


def assert_loaded(params, expected):
    params = flat(params)
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/", "img/", "params/img/"])
def test_load_reads_files_of_all_layouts(tmp_path, prefix):
    case, path = BigVisionCase(), tmp_path / "vit.npz"
    arrays = {f"{prefix}{name}": value for name, value in stored(case).items()}
    beside = {"": {}, "params/": {"opt/0/mu/head/bias": np.ones(3)}, "opt/target/": {"opt/state/step": np.ones(())}}
    towers = {
        "img/": {"t": np.ones(1), "txt/head/bias": np.ones(3)},
        "params/img/": {"params/txt/head/bias": np.ones(3)},
    }
    np.savez(path, **arrays, **(beside | towers)[prefix])
    expected = stored(case)
    assert_loaded(load(inited(case), str(path), config(case)), expected)
    if "img" in prefix:
        assert_loaded(load(inited(case), f"{path}:img", config(case)), expected)
    stacked = flat(load(inited(case, scan=True), path, config(case, scan=True)))
    for name, value in expected.items():
        block = re.fullmatch(r"Transformer/encoderblock_(\d)/(.*)", name)
        found = stacked[f"Transformer/encoderblock/{block[2]}"][int(block[1])] if block else stacked[name]
        np.testing.assert_array_equal(found, value, err_msg=name)
    again = load(inited(case), unflatten_dict(stacked, sep="/"), config(case))
    assert_loaded(again, expected)


def test_load_starts_lape_from_default_joining(caplog):
    case, default = BigVisionCase(), BigVisionCase(join="default")
    with caplog.at_level(logging.INFO):
        params = load(inited(case), stored(default), config(case), dont_load=["head/.*"])
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    norms = [name for name in flat(params) if "pe_norm" in name]
    assert len(norms) == 4
    assert warning.startswith("the checkpoint has no PE norms; these start from their initial values: ")
    assert all(name in warning for name in norms)
    assert "head/kernel" in caplog.text
    kept = dict.fromkeys((*norms, "head/kernel", "head/bias"), 7)
    assert_loaded(params, stored(default) | kept)
    some = stored(case, **{"Transformer/encoderblock_1/pe_norm/bias": None})
    with pytest.raises(UserError, match="the checkpoint lacks Transformer/encoderblock_1/pe_norm/bias"):
        load(inited(case), some, config(case))
    with pytest.raises(UserError, match="the model has no Transformer/encoderblock_0/pe_norm/bias, Transformer/"):
        load(inited(default), stored(case), config(default))
    assert_loaded(
        load(inited(default), stored(case), config(default), dont_load=".*/pe_norm/.*"),
        {name: value for name, value in stored(case).items() if "pe_norm" not in name},
    )


def old_names(arrays, row):
    """As in AugReg files: other names of modules, and a position table in the encoder that has a class row."""
    renamed = {}
    for name, value in arrays.items():
        for new, old in (
            ("LayerNorm_1", "LayerNorm_2"),
            ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
            ("MlpBlock_0", "MlpBlock_3"),
        ):
            name = name.replace(f"/{new}/", f"/{old}/")
        renamed[name] = value
    table = renamed.pop("pos_embedding")
    return renamed | {"Transformer/posembed_input/pos_embedding": np.concatenate([row, table], axis=1)}


def square(**settings):
    """A case on a 2 x 2 grid."""
    return BigVisionCase(image=(8, 8), **settings)


SQUARE = jnp.zeros((1, 8, 8, 3))
ROW = np.float32(np.arange(16).reshape(1, 1, 16))


def test_load_adds_an_old_class_row_to_the_class_token_if_it_may():
    default, lape, own = square(pool="tok", join="default"), square(pool="tok"), square(pool="tok", cls_pe=True)
    arrays = stored(default)
    old = old_names(arrays, ROW)
    found = load(inited(default, SQUARE), old, config(default))
    assert_loaded(found, arrays | {"cls": arrays["cls"] + ROW})
    with pytest.raises(UserError, match=r"has a row for the class token, which join='lape' .* with cls_pe=True"):
        load(inited(lape, SQUARE), old, config(lape))
    with pytest.raises(UserError, match="which join='lape' "):
        load(inited(lape, SQUARE), old, None)
    found = flat(load(inited(own, SQUARE), old, config(own)))
    np.testing.assert_array_equal(found["cls"], arrays["cls"])
    np.testing.assert_array_equal(found["pos_embedding"], np.concatenate([ROW, arrays["pos_embedding"]], axis=1))
    gap = square()
    found = flat(load(inited(gap, SQUARE), old, config(gap), dont_load=["cls"]))
    np.testing.assert_array_equal(found["pos_embedding"], arrays["pos_embedding"])
    with pytest.raises(UserError, match="the file's position table has no row for the class token: leave cls_pe=True"):
        load(inited(own, SQUARE), stored(lape), config(own))


@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 2), (7, 12), (14, 24), (1, 3)])
def test_load_resizes_the_table_as_scipy_does(old, new):
    table = np.float32(np.random.default_rng(0).normal(size=(1, old * old, 16)))
    row = np.float32(np.ones((1, 1, 16)))
    zoom = (new / old, new / old, 1)
    expected = scipy.ndimage.zoom(table.reshape(old, old, 16), zoom, order=1).reshape(1, new * new, 16)
    case = square()
    found = load(inited(case, jnp.zeros((1, 4 * new, 4 * new, 3))), stored(case, pos_embedding=table), config(case))
    np.testing.assert_allclose(found["pos_embedding"], expected, rtol=0, atol=1e-6)
    own = square(pool="tok", cls_pe=True)
    arrays = stored(own, pos_embedding=np.concatenate([row, table], axis=1))
    found = load(inited(own, jnp.zeros((1, 4 * new, 4 * new, 3))), arrays, config(own))
    np.testing.assert_allclose(found["pos_embedding"], np.concatenate([row, expected], axis=1), rtol=0, atol=1e-6)


def test_load_converts_types_and_shares_nothing(tmp_path):
    case, path = BigVisionCase(pool="map"), tmp_path / "half.npz"
    arrays = stored(case)
    np.savez(path, **{name: value.astype(jnp.bfloat16) for name, value in arrays.items()})
    found = flat(load(inited(case), path, config(case)))
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert_loaded(unflatten_dict(found, sep="/"), {n: np.float32(v.astype(jnp.bfloat16)) for n, v in arrays.items()})
    inlined = {name.removeprefix("MAPHead_0/"): value for name, value in arrays.items()}
    assert_loaded(load(inited(case), inlined, config(case)), arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head/bias": None}, "it lacks head/bias$"),
        ({"more": np.ones(3)}, "the model has no more$"),
        ({"head/bias": np.ones(4, np.float32)}, r"shapes differ: head/bias is \(4,\) and should be \(3,\)$"),
        ({"head/bias": np.ones(3, int)}, "not floating point: head/bias is int64$"),
        ({"head/bias": np.full(3, np.nan, np.float32)}, "not finite: head/bias$"),
        ({"Transformer/encoderblock_0/LayerNorm_0/bias": None}, "lacks Transformer/encoderblock_0/LayerNorm_0/bias$"),
        (
            {"Transformer/encoderblock_0/LayerNorm_2/bias": np.ones(16)},
            "has Transformer/encoderblock_0/LayerNorm_1/bias tw",
        ),
        ({"pos_embedding": np.ones((1, 7, 16), np.float32)}, "position tables of 7 and 4 rows are not both of square"),
    ],
)
def test_load_names_what_does_not_fit(changes, message):
    case = square()
    with pytest.raises(UserError, match=message):
        load(inited(case, SQUARE), stored(case, **changes), config(case))


@pytest.mark.parametrize("name", ["absent.npz", "howto-i21k-S/16", "gs://bucket/vit.npz:img", "broken.npz"])
def test_load_says_what_is_wrong_with_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK no")
    case = BigVisionCase()
    with pytest.raises(UserError, match=r"cannot be read: No such file|is damaged") as error:
        load(inited(case), name, config(case))
    assert "\n" not in str(error.value)
