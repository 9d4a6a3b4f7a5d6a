"""big_vision's parameters into our models and back; its files. What they compute is compared in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from lape_jax import convert, models, port
from lape_jax.errors import UserError
from tests import peers, quick
from tests.models import families, stepwise
from tests.port.tiny import identical, random_variables
from tests.reference import big_vision_cases
from tests.reference.big_vision_cases import BigVisionCase

TABLE = "Transformer/posembed_input/pos_embedding"
SIZES = {"num_classes": 3, "image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


def deit(**settings):
    """A DeiT-shaped model that computes what big_vision's does."""
    return models.create("deit_ti", **{**SIZES, "mlp_ratio": 1.5, "gelu": "tanh", **settings})


def own(**settings):
    """One with big_vision's names."""
    return models.create("vit_ti_16", **{**SIZES, "mlp_ratio": 1.5, **settings})


def stored(**case):
    """Weights as a file of big_vision has them."""
    return {name: np.float32(value) for name, value in big_vision_cases.weights(BigVisionCase(**case)).items()}


# ---- What they compute -----------------------------------------------------------------------------------------------

SAME = [
    # with a row of the table for the class token, and without
    (BigVisionCase(pool="tok", cls_pe=True, join="lape"), {}),
    (BigVisionCase(posemb="sincos2d"), {"pool": "gap", "pe": "sincos_2d_moco"}),
    (BigVisionCase(pool="tok", join="default"), {"join": "default"}),
    (BigVisionCase(join="default"), {"pool": "gap", "join": "default"}),
    (BigVisionCase(join="unshared"), {"pool": "gap", "join": "unshared"}),
    (BigVisionCase(join="lape"), {"pool": "gap"}),
    (BigVisionCase(pool="tok", join="shared"), {"join": "shared"}),
]


@pytest.mark.parametrize(("case", "settings"), quick.first(1, SAME), ids=[case.name for case, _ in SAME])
def test_our_vit_computes_the_same(case, settings):
    with jax.enable_x64(True):
        model = deit(**settings, dtype="float64")
        variables = port.from_big_vision(big_vision_cases.weights(case), model)
        images = jnp.asarray(big_vision_cases.images(case))
        logits = quick.jit(lambda variables: model.apply(variables, images)[0])(variables)
    expected = families.goldens("big_vision")[case.name][: logits.size]
    np.testing.assert_allclose(np.ravel(logits), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.peer
def test_timm_computes_the_same_from_an_old_file(tmp_path):
    """timm reads the files of AugReg: other names of modules, a position table in the encoder with a class row."""
    torch, timm = pytest.importorskip("torch"), peers.timm()
    case = BigVisionCase(pool="tok", cls_pe=True, join="default", image=(8, 8))
    old = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
    old |= {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1", "pos_embedding": TABLE}
    arrays = {
        "/".join(old.get(part, part) for part in name.split("/")): value
        for name, value in big_vision_cases.weights(case).items()
    }
    np.savez(tmp_path / "augreg.npz", **arrays)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
    gelu = functools.partial(torch.nn.GELU, approximate="tanh")
    theirs = timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=3, act_layer=gelu).double().eval()
    theirs.load_pretrained(str(tmp_path / "augreg.npz"))
    images = big_vision_cases.images(case)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    size = {"image_size": 8, "join": "default", "dtype": "float64"}
    with jax.enable_x64(True):
        for model in (deit(**size), own(pool="tok", **size), own(pool="tok", cls_pe=True, scan=False, **size)):
            variables = port.load(tmp_path / "augreg.npz", model)
            logits = stepwise.run(
                lambda variables, model=model: model.apply(variables, jnp.asarray(images))[0], variables
            )
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


# ---- Names and bits --------------------------------------------------------------------------------------------------


def round_trip(model, scan=False, dtype=np.float32):
    variables = random_variables(model, dtype)
    flat = port.to_big_vision(variables, model, scan)
    identical(variables, port.from_big_vision(flat, model))
    return {name: array.shape for name, array in flat.items()}


@pytest.mark.parametrize("join", ["default", "shared", "unshared", "lape_sharing", "lape"])
@pytest.mark.parametrize("pool", ["gap", "token"])
def test_round_trip_of_our_vit(pool, join):
    case = BigVisionCase(pool="tok" if pool == "token" else pool, join=join, cls_pe=pool == "token")
    expected = big_vision_cases.shapes(case)
    assert round_trip(deit(pool=pool, join=join)) == expected
    stacked = round_trip(deit(pool=pool, join=join), scan=True)
    assert stacked["Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel"] == (2, 2, 8, 16)
    assert len(stacked) == len(expected) - sum("encoderblock_1" in name for name in expected)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_types_are_kept(dtype):
    round_trip(deit(pe_norm="scalar"), dtype=dtype)
    round_trip(own(pool="map", rep_size=True), dtype=dtype)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"pool": "tok"}, {"pool": "tok", "cls_pe": True}, {"pool": "map"}, {"pool": "0"}]
)
def test_round_trip_of_big_visions_vit(settings, scan):
    expected = big_vision_cases.shapes(BigVisionCase(**settings))
    model = own(**settings, scan=scan)
    assert round_trip(model, scan=False) == expected
    stacked = {name.replace("encoderblock_0/", "encoderblock/") for name in expected if "encoderblock_1/" not in name}
    assert round_trip(model, scan=True).keys() == stacked
    assert round_trip(model) == expected


def test_axes():
    """Our fused projection has the heads of the query, then of key and value."""
    model = deit()
    variables = random_variables(model)
    params, flat = variables["params"]["blocks"]["attn"], port.to_big_vision(variables, model)
    attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
    assert flat[f"{attention}/key/kernel"][5, 1, 3] == params["qkv"]["kernel"][1, 5, 16 + 8 + 3]
    assert flat[f"{attention}/value/bias"][1, 3] == params["qkv"]["bias"][1, 32 + 8 + 3]
    assert flat[f"{attention}/out/kernel"][1, 3, 5] == params["proj"]["kernel"][1, 8 + 3, 5]
    assert flat["pos_embedding"][0, 4, 7] == variables["params"]["pos_embed"][4, 7]


def test_copies():
    model = deit()
    flat = port.to_big_vision(random_variables(model), model)
    variables = port.from_big_vision(flat, model)
    before = variables["params"]["head"]["bias"].copy()
    flat["head/bias"] += 1
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], before)


# ---- The class token's row -------------------------------------------------------------------------------------------


def test_class_token_without_a_row():
    model, flat = deit(join="default"), stored(pool="tok", join="default")
    table = port.from_big_vision(flat, model)["params"]["pos_embed"]
    assert not table[0].any()
    np.testing.assert_array_equal(table[1:], flat["pos_embedding"][0])
    with pytest.raises(
        UserError, match=r"class token has no position embedding, and join='lape' of this .* gives it one"
    ):
        port.from_big_vision(stored(pool="tok"), deit())
    with pytest.raises(UserError, match="class token has no position embedding"):
        port.from_big_vision(stored(pool="tok", posemb="sincos2d"), deit(pe="sincos_2d_moco"))


def test_class_token_with_a_row():
    flat = stored(pool="tok", join="default", cls_pe=True)
    folded = port.from_big_vision(flat, own(pool="tok", join="default"))["params"]
    np.testing.assert_array_equal(folded["cls"], flat["cls"] + flat["pos_embedding"][:, :1])
    np.testing.assert_array_equal(folded["pos_embedding"], flat["pos_embedding"][:, 1:])
    kept = port.from_big_vision(flat, own(pool="tok", join="default", cls_pe=True))["params"]
    np.testing.assert_array_equal(kept["cls"], flat["cls"])
    np.testing.assert_array_equal(kept["pos_embedding"], flat["pos_embedding"])
    with pytest.raises(
        UserError, match="which join='lape' does not add to it once and for all: build the model with cls"
    ):
        port.from_big_vision(stored(pool="tok", cls_pe=True), own(pool="tok"))


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_are_recognised(tmp_path, suffix):
    path = tmp_path / f"vit{suffix}"
    for model in (deit(), own(pool="map"), own(scan=False)):
        variables = random_variables(model, jnp.bfloat16)
        port.save(path, variables, model, format="big_vision")
        identical(variables, port.load(path, model))
        if suffix == ".npz":
            with np.load(path) as file:
                assert {file[name].dtype for name in file.files} == {np.dtype("V2")}
                identical(variables, port.from_big_vision(dict(file), model))
    port.save(path, variables, model, format="lape")
    identical(variables, port.load(path, model))


@pytest.mark.parametrize("scan", [False, True])
def test_checkpoints_of_the_trainer(tmp_path, scan):
    """Directories of zarr arrays, as jax.experimental.array_serialization writes them, beside an optimiser's."""
    model, place = deit(pool="gap"), tmp_path / "checkpoint.bv-000000300"
    variables = random_variables(model)
    flat = port.to_big_vision(variables, model, scan)
    for name, array in {**{f"params/{name}": array for name, array in flat.items()}, "opt/0/count": np.ones(1)}.items():
        kvstore = {"driver": "file", "path": str(place / name.replace("/", "~"))}
        tensorstore.open(
            {"driver": "zarr", "kvstore": kvstore}, create=True, dtype=array.dtype, shape=array.shape
        ).result()[...] = array
    identical(variables, port.load(place, model))
    sizes = [
        f"--model.{key}={value}" for key, value in {**SIZES, "mlp_ratio": 1.5, "gelu": "tanh", "pool": "gap"}.items()
    ]
    convert.main([str(place), str(tmp_path / "back.npz"), "--model=deit_ti", "--to=lape", *sizes])
    identical(variables, port.load(tmp_path / "back.npz", model))
    (place / "params~cls" / ".zarray").parent.mkdir()
    (place / "params~cls" / ".zarray").write_text("{")
    with pytest.raises(UserError, match="is damaged, or not a big_vision checkpoint file"):
        port.load(place, model)


def test_optimiser_state_and_text_models_are_left(tmp_path):
    model, path = deit(pool="gap"), tmp_path / "vit.npz"
    flat = stored()
    expected = port.from_big_vision(flat, model)
    for prefix, other in (("params/", "opt/0/mu/head/bias"), ("opt/target/", "opt/state/step"), ("img/", "t")):
        np.savez(path, **{f"{prefix}{name}": value for name, value in flat.items()}, **{other: np.ones(3, int)})
        identical(expected, port.load(path, model))
    tree = {"params": {"img": {"head": {"bias": np.ones(3)}}, "t": np.ones(())}}
    with pytest.raises(
        UserError, match=r"the checkpoint \(1 of 25 fit\) does not fit the model: it lacks Transformer/"
    ):
        port.from_big_vision(tree, model)


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: deit(gelu="erf"), "gelu='erf': big_vision's ViT has 'tanh', so must the model have"),
        (lambda: own(gelu="erf"), "gelu='erf': big_vision's"),
        (lambda: deit(ln_eps=1e-5), "ln_eps=1e-05: big_vision's ViT has 1e-06"),
        (lambda: deit(layer_scale=0.1), "layer_scale=0.1: big_vision's ViT has None"),
        (lambda: deit(distilled=True), "distilled=True: big_vision's ViT has False"),
        (
            lambda: deit(pe="learnable+relative"),
            "pe='learnable.relative' with join='lape' has no counterpart in big_vision",
        ),
        (lambda: deit(pe="peg"), "pe='peg' with join='default' has no counterpart in big_vision"),
        (lambda: deit(pe="sincos_2d"), "pe='sincos_2d' with join='lape' has no counterpart in big_vision"),
        (lambda: deit(pool="seq"), "pool='seq'"),
        (lambda: models.create("vit_lite_7_4"), "a ViTLite has no counterpart in big_vision"),
        (lambda: models.create("regnety_160"), "a RegNet has no counterpart in big_vision"),
    ],
)
def test_models_that_are_something_else(model, message):
    with pytest.raises(UserError, match=message):
        port.from_big_vision(stored(), model())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head/bias": np.ones(4)}, r"shapes differ: head/bias is \(4,\) and should be \(3,\)$"),
        ({"MAPHead_0/probe": np.ones((1, 1, 16))}, "the model has no MAPHead_0/probe$"),
        (
            {"Transformer/encoderblock_2/LayerNorm_0/bias": np.ones(16)},
            "the checkpoint lacks Transformer/encoderblock_2/",
        ),
        (
            {"Transformer/encoderblock_1/LayerNorm_0/bias": np.ones(15)},
            "arrays LayerNorm_0/bias are not all of one shape",
        ),
        ({"Transformer/encoderblock/LayerNorm_0/bias": np.ones((2, 16))}, "or there twice"),
        ({"head/bias": "text"}, "head/bias should be an array, and is a str"),
        (
            {
                f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/key/bias": np.ones((2, 8), np.float16)
                for i in (0, 1)
            },
            "the biass? of query, key and value have different types",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoints_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        port.from_big_vision(stored() | changes, deit(pool="gap"))
