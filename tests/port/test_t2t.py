"""T2T-ViT's state dicts in the names of the official code, and the checkpoints of its training script."""

import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests.port.tiny import identical, random_variables, round_trip

SIZES = {"width": 16, "depth": 2, "heads": 2, "image_size": 32, "num_classes": 5, "token_dim": 8}
W = [f"tokens_to_token.attention{number}.w" for number in (1, 2)]


def tiny(name="t2t_vit_7", **settings):
    return models.create(name, **{**SIZES, "mlp_ratio": 2.0, **settings})


def linear(*names):
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


def names(*tokens):
    """Of a model with LaPE, with these `tokens` as the parts of an attention that have weight and bias."""
    found = linear("norm", "head", "tokens_to_token.project") | {"cls_token", "pos_embed"}
    for i in range(2):
        found |= linear(*(f"blocks.{i}.{x}" for x in ("pe_norm", "norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")))
        found |= {f"blocks.{i}.attn.qkv.weight"}
    return found | linear(*(f"tokens_to_token.attention{number}.{part}" for number in (1, 2) for part in tokens))


def test_round_trip_and_names_of_performers():
    state_dict = round_trip(tiny())
    assert set(state_dict) == names("kqv", "proj", "norm1", "norm2", "mlp.0", "mlp.2") | set(W)
    assert state_dict["tokens_to_token.attention1.kqv.weight"].shape == (24, 3 * 49)
    assert state_dict["tokens_to_token.attention2.kqv.weight"].shape == (24, 8 * 9)
    assert state_dict["tokens_to_token.attention1.w"].shape == (4, 8)
    assert state_dict["pos_embed"].shape == (1, 5, 16)


def test_round_trip_and_names_of_transformers():
    state_dict = round_trip(tiny("t2t_vit_t_14"))
    qkv = {f"tokens_to_token.attention{number}.attn.qkv.weight" for number in (1, 2)}
    assert set(state_dict) == names("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") | qkv


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_types_are_kept(dtype):
    assert {array.dtype for array in round_trip(tiny(), dtype).values()} == {np.dtype(dtype)}


def test_axes():
    model = tiny(join="unshared", pe="learnable")
    variables = random_variables(model)
    state_dict, tokens = port.to_torch(variables, model), variables["params"]["patch_embed"]
    features = variables["constants"]["patch_embed"]["attention2"]["w"]
    np.testing.assert_array_equal(state_dict["tokens_to_token.attention2.w"], features)
    for theirs, ours in (
        ("attention1.kqv", tokens["attention1"]["kqv"]),
        ("attention2.mlp.0", tokens["attention2"]["mlp"]["fc1"]),
        ("attention2.mlp.2", tokens["attention2"]["mlp"]["fc2"]),
        ("project", tokens["project"]),
    ):
        np.testing.assert_array_equal(state_dict[f"tokens_to_token.{theirs}.weight"], ours["kernel"].T)
    np.testing.assert_array_equal(state_dict["pos_embed1"][0], variables["params"]["pos_embed"][1])


def test_the_frozen_sinusoid_is_compared_and_the_features_must_be_there():
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    np.testing.assert_allclose(state_dict["pos_embed"][0, 3, :2], [np.sin(3), np.cos(3)], rtol=1e-6)
    with pytest.raises(UserError, match=r"pos_embed differs by up to 0\.01 from the one that this model has fixed"):
        port.from_torch({**state_dict, "pos_embed": state_dict["pos_embed"] + 0.01}, model)
    for name in W:
        del state_dict[name]
    with pytest.raises(UserError, match=f"it lacks {W[0]}, {W[1]}$"):
        port.from_torch(state_dict, model)


@pytest.fixture(scope="module")
def checkpoint():
    """As the training script leaves it: the weights and their EMA, both with the prefix of parallel models."""
    model = tiny()
    variables = random_variables(model)
    last = {f"module.{name}": array for name, array in port.to_torch(variables, model).items()}
    mean = {name: array if name.endswith("pos_embed") else array / 2 for name, array in last.items()}
    return model, {"epoch": 309, "arch": "t2t_vit_7", "state_dict": last, "state_dict_ema": mean}


def test_weights_and_their_running_mean_are_not_mistaken_for_each_other(checkpoint):
    model, content = checkpoint
    message = "has weights under 'state_dict' and under 'state_dict_ema': pass the ones that you mean"
    with pytest.raises(UserError, match=message):
        port.from_torch(content, model)
    last, mean = (port.from_torch(content[key], model)["params"] for key in ("state_dict", "state_dict_ema"))
    np.testing.assert_array_equal(last["head"]["kernel"] / 2, mean["head"]["kernel"])
    only = {"state_dict_ema": content["state_dict_ema"], "epoch": 309}
    np.testing.assert_array_equal(port.from_torch(only, model)["params"]["head"]["kernel"], mean["head"]["kernel"])


@pytest.mark.peer
def test_file_of_a_training_script(checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    model, content = checkpoint
    tensors = {
        key: {name: torch.from_numpy(array) for name, array in part.items()} if isinstance(part, dict) else part
        for key, part in content.items()
    }
    path = tmp_path / "71.7_T2T_ViT_7.pth.tar"
    torch.save(tensors, path)
    with pytest.raises(UserError, match=r"71\.7_T2T_ViT_7\.pth\.tar: the checkpoint has .* \(FILE:state_dict_ema\)$"):
        port.load(path, model)
    for key in ("state_dict", "state_dict_ema"):
        identical(port.from_torch(content[key], model), port.load(f"{path}:{key}", model))
    with pytest.raises(
        UserError, match=r"tar: there are no weights under 'model': the keys there are: state_dict, state_dict_ema$"
    ):
        port.load(f"{path}:model", model)
    with pytest.raises(UserError, match="no weights under 'ema'"):
        port.load(f"{path}:ema", model)


def test_files(tmp_path):
    model = tiny()
    variables = random_variables(model)
    for format in ("torch", "lape"):
        port.save(tmp_path / "t2t.npz", variables, model, format=format)
        identical(variables, port.load(tmp_path / "t2t.npz", model))
