"""Backbones as pre-training leaves them: without head, with registers, without class token; DINO's and MAE's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import convert, models, port
from lape_jax.errors import UserError
from lape_jax.nn.join import JOINS
from lape_jax.port.params import flatten
from tests import peers, quick
from tests.port.test_huggingface import logits_of
from tests.port.tiny import TINY, identical, random_variables, tiny

SIZES = [f"--model.{key}={value}" for key, value in TINY.items() if key not in ("num_classes", "image_size")]
MAE = ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight"]
DINO = ["head.mlp.0.weight", "head.last_layer.weight_v"]

OTHERS = [name for name, join in JOINS.items() if join.trainable and name not in ("lape", "mpvg")]


def converted(tmp_path, arrays):
    np.savez(tmp_path / "in.npz", **arrays)
    convert.main([str(tmp_path / "in.npz"), str(tmp_path / "out.npz"), "--model=deit_ti", "--to=lape", *SIZES])
    return tmp_path / "out.npz"


@pytest.mark.parametrize("beside", [MAE, DINO])
def test_what_is_beside_a_backbone_is_left_and_said(tmp_path, caplog, capsys, beside):
    model = tiny(join="default", num_classes=0)
    variables = random_variables(model)
    arrays = port.to_torch(variables, model)
    assert not any(name.startswith("head") for name in arrays)
    out = converted(tmp_path, arrays | {name: np.ones((1, 4)) for name in beside})
    identical(port.load(out, model), variables)
    assert "left out, as no parts of the model: " in caplog.text
    assert f"{beside[0].split('.')[0]} (" in caplog.text
    assert "16 x 16 pixels, no head)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"it lacks head.bias, head.weight"):
        port.load(tmp_path / "in.npz", tiny(join="default"))


def test_without_a_head_the_logits_are_what_it_would_see():
    model, headed = tiny(num_classes=0), tiny()
    variables = random_variables(headed)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    bare = {"params": {name: leaf for name, leaf in variables["params"].items() if name != "head"}}
    logits, _ = model.apply(bare, images)
    np.testing.assert_array_equal(logits, headed.apply(variables, images)[1]["pre_logits"])


@pytest.mark.slow
def test_a_distillation_token_without_head():
    model, headed = tiny(distilled=True, dist_head=False), tiny(distilled=True)
    variables = random_variables(headed)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    bare = {"params": {name: leaf for name, leaf in variables["params"].items() if name != "head_dist"}}
    expected, _ = headed.apply(variables, images, train=True)[1]["heads"]
    for train in (False, True):
        np.testing.assert_allclose(model.apply(bare, images, train=train)[0], expected, rtol=1e-6)


# ---- Registers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", quick.first(2, ["lape", "mpvg", *OTHERS]))
def test_registers_have_no_position(join):
    """In any order, and wherever they are, they do the same; and PE norms, whatever their bias, leave them alone."""
    pool = (*JOINS[join].pools, "token")[0]
    model, others = tiny(join=join, registers=3, pool=pool), int(pool == "token")
    variables = random_variables(model)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    logits, out = model.apply(variables, images)
    turned = {"params": {**variables["params"], "reg_token": variables["params"]["reg_token"][:, ::-1]}}
    np.testing.assert_allclose(model.apply(turned, images)[0], logits, rtol=1e-4, atol=1e-4)
    assert out["tokens"].shape == (2, 2, 3 + others + 4, 32)
    if out["pe"] is not None:
        assert not np.asarray(out["pe"])[..., :3, :].any()
        assert np.asarray(out["pe"])[int(JOINS[join].norms_apart) :, ..., 3:, :].all()
    assert variables["params"]["pos_embed"].shape[-2] == others + 4


@pytest.mark.parametrize("settings", quick.first(1, [{}, {"join": "mpvg", "pool": "gap"}]), ids=str)
def test_registers_are_folded(settings):
    model = tiny(registers=2, **settings)
    variables = jax.tree.map(lambda leaf: 0.2 * leaf, random_variables(model))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    folded, constants = port.fold(variables, model)
    np.testing.assert_allclose(
        folded.apply(constants, images)[0], model.apply(variables, images)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["reg_token", "register_tokens"])
def test_names_of_registers_and_scales(tmp_path, name):
    """timm's and DINOv2's; both are found in the weights."""
    model = tiny(join="default", registers=4, layer_scale=1.0, num_classes=0)
    variables = random_variables(model)
    arrays = port.to_torch(variables, model)
    assert arrays["reg_token"].shape == (1, 4, 32)
    arrays[name] = arrays.pop("reg_token")
    arrays = {key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): x for key, x in arrays.items()}
    identical(port.load(converted(tmp_path, arrays), model), variables)


def test_without_class_token(tmp_path):
    model = tiny(join="default", pool="gap", registers=1)
    variables = random_variables(model)
    identical(port.load(converted(tmp_path, port.to_torch(variables, model)), model), variables)
    start = tiny(join="lape", registers=1)
    result, moved = port.warm_start(tmp_path / "in.npz", start, jax.tree.map(np.zeros_like, random_variables(start)))
    assert {"pos_embed", "cls_token"} & set(moved.initialised) == {"cls_token"}
    np.testing.assert_array_equal(flatten(result)["pos_embed"][1:], variables["params"]["pos_embed"])


def test_registers_may_be_added_and_not_lost(tmp_path):
    source, model = tiny(join="default", registers=2), tiny(registers=2)
    port.save(tmp_path / "with.npz", random_variables(source), source)
    plain = tiny(join="default")
    port.save(tmp_path / "without.npz", random_variables(plain), plain)
    fresh = jax.tree.map(np.zeros_like, random_variables(model))
    assert "reg_token" in port.warm_start(tmp_path / "with.npz", model, fresh)[1].loaded
    assert "reg_token" in port.warm_start(tmp_path / "without.npz", model, fresh)[1].initialised
    with pytest.raises(UserError, match="another kind or size of model, which differs in reg_token"):
        port.warm_start(tmp_path / "with.npz", plain, random_variables(plain))


def test_registers_are_a_vits_alone():
    with pytest.raises(UserError, match="registers=2: only a ViT has them, no BigVisionViT"):
        models.create("vit_ti_16", registers=2)
    with pytest.raises(UserError, match="registers=-1 is negative"):
        tiny(registers=-1)
    with pytest.raises(UserError, match="num_classes=0 is not positive"):
        models.create("cct_7_3x1", num_classes=0)


@pytest.mark.peer
def test_timms_registers():
    """Of a timm whose table has rows for all tokens, of which those of the registers are zeros."""
    torch, timm = pytest.importorskip("torch"), peers.timm()
    model = tiny(join="default", registers=4, layer_scale=1.0, num_classes=0)
    variables = random_variables(model)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    theirs = timm.models.VisionTransformer(**sizes, num_classes=0, reg_tokens=4, init_values=1.0).double().eval()
    arrays = port.to_torch(variables, model)
    arrays = {key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): x for key, x in arrays.items()}
    table = arrays["pos_embed"]
    arrays["pos_embed"] = np.concatenate([table[:, :1], np.zeros((1, 4, 32)), table[:, 1:]], axis=1)
    theirs.load_state_dict({name: torch.from_numpy(np.float64(array)) for name, array in arrays.items()})
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits_of(model, variables, images), expected, rtol=0, atol=1e-9)
