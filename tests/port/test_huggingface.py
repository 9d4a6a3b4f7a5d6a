"""Hugging Face's names and directories: ViT, DeiT with and without teacher, Swin; and transformers' own answers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lape_jax import convert, models, port
from lape_jax.errors import UserError
from lape_jax.port import about, huggingface
from tests import peers
from tests.models import stepwise
from tests.port.test_swin import tiny as swin
from tests.port.tiny import TINY, identical, random_variables, tiny

PLAIN = {"join": "default", "ln_eps": 1e-12}
MODELS = {
    "vit": lambda **kw: tiny(**PLAIN, **kw),
    "deit": lambda **kw: tiny(**PLAIN, distilled=True, dist_head=False, **kw),
    "teacher": lambda **kw: tiny(**PLAIN, distilled=True, **kw),
    "swin": lambda **kw: swin(pe="relative", join="default", **kw),
}
CLASSES = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "teacher": "DeiTForImageClassificationWithTeacher",
    "swin": "SwinForImageClassification",
}


def leaves(*modules):
    return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


# What is in a layer of a ViT's file, and in a block of a Swin's, for transformers 4 and 5.
LAYER = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
REST = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
BLOCK = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


def names_of_vit(start, *heads, token=False):
    body = {f"{start}.embeddings.{name}" for name in ("cls_token", "position_embeddings")}
    body |= {f"{start}.embeddings.distillation_token"} if token else set()
    body |= leaves(f"{start}.embeddings.patch_embeddings.projection", f"{start}.layernorm", *heads)
    return body | leaves(*(f"{start}.encoder.layer.{i}.{part}" for i in (0, 1) for part in LAYER + REST))


def names_of_swin():
    blocks = [f"swin.encoder.layers.{stage}.blocks.{block}" for stage, block in ((0, 0), (0, 1), (1, 0))]
    found = leaves(
        "swin.embeddings.patch_embeddings.projection", "swin.embeddings.norm", "swin.layernorm", "classifier"
    )
    found |= leaves(*(f"{block}.{part}" for block in blocks for part in BLOCK + REST))
    found |= {f"{block}.attention.self.relative_position_bias_table" for block in blocks}
    return found | {
        "swin.encoder.layers.0.downsample.reduction.weight",
        *leaves("swin.encoder.layers.0.downsample.norm"),
    }


NAMES = {
    "vit": names_of_vit("vit", "classifier"),
    "deit": names_of_vit("deit", "classifier", token=True),
    "teacher": names_of_vit("deit", "cls_classifier", "distillation_classifier", token=True),
    "swin": names_of_swin(),
}


def written(kind, path, **settings):
    """A directory, and the model and the variables that it holds."""
    model = MODELS[kind](**settings)
    variables = random_variables(model)
    port.save(path, variables, model, format="hf")
    return model, variables


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(tmp_path, kind):
    model, variables = written(kind, tmp_path / "out")
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert set(arrays) == NAMES[kind]
    identical(port.load(tmp_path / "out", model), variables)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [CLASSES[kind]]
    known = about.read(tmp_path / "out")
    for setting, value in known.settings.items():
        assert getattr(model, setting) == value, setting
    assert known.model == {"vit": "deit_b", "deit": "deit_b", "teacher": "deit_b", "swin": "swin_t"}[kind]
    assert (known.mean, known.std, known.classes) == ((), (), ())


def test_axes(tmp_path):
    _, variables = written("vit", tmp_path / "out")
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    kernel = variables["params"]["blocks"]["attn"]["qkv"]["kernel"]
    key = arrays["vit.encoder.layer.1.attention.attention.key.weight"]
    assert key.shape == (32, 32)
    np.testing.assert_array_equal(key, kernel[1, :, 32:64].T)
    assert arrays["vit.embeddings.patch_embeddings.projection.weight"].shape == (32, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "sizes", "name_of_ours"),
    [
        ("vit", {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}, "deit_ti"),
        ("deit", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}, "deit_s_distilled"),
        ("swin", {"depths": [2, 2, 18, 2], "use_absolute_embeddings": True}, "swin_s"),
    ],
)
def test_configs_name_our_models(tmp_path, name, sizes, name_of_ours):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **sizes}))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')
    known = about.read(tmp_path / "model.safetensors")
    assert known.model == name_of_ours
    assert known.mean == (0.5, 0.5, 0.5)
    model = models.create(known.model, **known.settings)
    assert model.ln_eps == (1e-5 if name == "swin" else 1e-12)
    assert model.pe == ("learnable+relative" if name == "swin" else "learnable")


def test_convert_needs_no_more_than_the_directory(tmp_path, capsys):
    model, variables = written("teacher", tmp_path / "in", gelu="tanh")
    convert.main([str(tmp_path / "in"), str(tmp_path / "a.npz"), "--to=lape"])
    identical(port.load(tmp_path / "a.npz", model), variables)
    assert "pe learnable, 16 x 16 pixels, 5 classes)" in capsys.readouterr().out
    sizes = [f"--model.{key}={value}" for key, value in TINY.items()]
    more = ["--model=deit_ti", "--to=hf", "--model.ln_eps=1e-12", "--model.gelu=tanh"]
    convert.main([str(tmp_path / "a.npz"), str(tmp_path / "out"), *more, *sizes])
    identical(port.load(tmp_path / "out", model), variables)
    with pytest.raises(UserError, match=r"--model.ln_eps=1e-06 contradicts .*, which says 1e-12"):
        convert.main([str(tmp_path / "in"), str(tmp_path / "b.npz"), "--model.ln_eps=1e-6"])


def test_what_is_known_of_images_and_classes_goes_along(tmp_path):
    model = tiny(**PLAIN)
    texts = about.write("deit_ti", model, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "abcde")
    port.save(tmp_path / "out", random_variables(model), model, format="hf", metadata=texts)
    known = about.read(tmp_path / "out")
    assert (known.mean, known.std, known.classes) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), tuple("abcde"))


def test_another_epsilon_is_said(tmp_path, caplog):
    written("vit", tmp_path / "out")
    model = tiny(join="default")
    port.load(tmp_path / "out", model)
    assert "config.json says ln_eps=1e-12, and the model computes with ln_eps=1e-06" in caplog.text
    _, moved = port.warm_start(tmp_path / "out", tiny(join="lape"), random_variables(tiny(join="lape")))
    assert any("ln_eps=1e-12" in line for line in moved.lines())
    assert "head/kernel" in moved.loaded


def test_names_in_the_memory_of_version_5_and_indices_of_version_4():
    model = tiny(**PLAIN)
    variables = random_variables(model)
    state_dict = {}
    for name, array in port.to_torch(variables, model).items():
        for ours, theirs in (
            ("blocks.", "layers."),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("attn.proj", "attention.o_proj"),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ):
            name = name.replace(ours, theirs)
        if "qkv" in name:
            for part, rows in zip("qkv", np.split(array, 3), strict=True):
                state_dict["vit." + name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        elif name.startswith("head"):
            state_dict[name.replace("head", "classifier")] = array
        else:
            state_dict["vit." + ("layernorm" + name[4:] if name.startswith("norm") else name)] = array
    identical(port.from_torch(state_dict, model), variables)
    model = swin(pe="relative", join="default")
    variables = random_variables(model)
    arrays = safetensors.numpy.load(huggingface.contents(variables, model)["model.safetensors"])
    index = "layers.1.blocks.0.attn.relative_position_index"
    old = "swin.encoder.layers.1.blocks.0.attention.self.relative_position_index"
    identical(port.from_torch(arrays | {old: port.to_torch(variables, model)[index]}, model), variables)
    with pytest.raises(UserError, match="differs by up to"):
        port.from_torch(arrays | {old: port.to_torch(variables, model)[index].T}, model)


def test_what_does_not_fit_is_told_by_its_name(tmp_path):
    model, _ = written("vit", tmp_path)
    arrays = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    query = "vit.encoder.layer.1.attention.attention.query.weight"
    without = {name: array for name, array in arrays.items() if name != query}
    with pytest.raises(UserError, match=r"it lacks blocks.1.attn.qkv.weight; the model has no vit.encoder.layer.1"):
        port.from_torch(without, model)
    with pytest.raises(UserError, match=r"query.weight, .* have different shapes or types"):
        port.from_torch(arrays | {query: arrays[query].astype(np.float64)}, model)
    with pytest.raises(UserError, match=r"the weights have cls_token twice, once as deit.embeddings.cls_token"):
        port.from_torch(arrays | {"deit.embeddings.cls_token": arrays["vit.embeddings.cls_token"]}, model)
    with pytest.raises(UserError, match=r"the model has no vit.encoder.layer.0.lambda_1"):
        port.from_torch(arrays | {"vit.encoder.layer.0.lambda_1": np.ones(32)}, model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny(), "join='lape': transformers' vit has 'default', so must the model have"),
        (lambda: tiny(join="default", pe="learnable+relative"), "pe='learnable.relative': transformers' vit has"),
        (lambda: tiny(join="default", pool="gap"), "pool='gap': transformers' vit has 'token'"),
        (lambda: swin(pe="relative", ln_eps=1e-6), "ln_eps=1e-06: transformers' swin has 1e-05"),
        (lambda: swin(pe="none"), "transformers' Swin has a relative bias"),
        (lambda: swin(pe="relative", image_size=8), "window_size=4 is more than a stage has tokens in a row"),
        (lambda: models.create("cct_7_3x1"), "a CCT has no counterpart in Hugging Face's transformers"),
    ],
)
def test_what_transformers_do_not_have(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        port.save(tmp_path / "out", {}, model(), format="hf")
    assert not (tmp_path / "out").exists()


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"a.safetensors: weights for Hugging Face's transformers are a directory"):
        written("vit", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model_type": "vit", "hidden_act": "relu"}, "hidden_act='relu' is not what a model here has"),
        ({"model_type": "swin", "layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 is that of some LayerNorms of a Swin"),
    ],
)
def test_configs_of_other_models(tmp_path, said, message):
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        about.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '{"model_type": "bert"}', '{"model": {"name": "deit_ti"}}'])
def test_other_configs_say_nothing(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert about.read(tmp_path) is None


# ---- Beside transformers ---------------------------------------------------------------------------------------------


def logits_of(model, variables, images):
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        model = model.clone(dtype=jnp.float64)
        return np.asarray(stepwise.run(lambda v: model.apply(v, jnp.asarray(images), train=False)[0], variables))


@pytest.mark.peer
@pytest.mark.parametrize("kind", MODELS)
def test_transformers_read_what_we_write_and_the_reverse(tmp_path, kind):
    transformers, torch = peers.transformers(), pytest.importorskip("torch")
    model, variables = written(kind, tmp_path / "ours")
    load = getattr(transformers, CLASSES[kind]).from_pretrained
    theirs, said = load(tmp_path / "ours", attn_implementation="sdpa", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    images = np.random.default_rng(0).standard_normal((2, *model.input_shape))
    with torch.no_grad():
        expected = theirs.double().eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()
    np.testing.assert_allclose(
        logits_of(model, variables, images), expected, rtol=0, atol=1e-9 * np.abs(expected).max()
    )
    theirs.float().save_pretrained(tmp_path / "theirs")
    identical(port.load(tmp_path / "theirs", model), variables)
    identical(port.from_torch(theirs.state_dict(), model), variables)
    known = about.read(tmp_path / "theirs")
    assert all(getattr(model, key) == value for key, value in known.settings.items())


@pytest.mark.peer
def test_a_backbone_of_transformers(tmp_path):
    """With a pooler, which is left out, and the other way without."""
    transformers, torch = peers.transformers(), pytest.importorskip("torch")
    model = tiny(**PLAIN, num_classes=0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, attn_implementation="sdpa")
    theirs = transformers.ViTModel(config)
    theirs.save_pretrained(tmp_path / "theirs")
    variables = port.load(tmp_path / "theirs", model)
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3))
    with torch.no_grad():
        expected = theirs.double().eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(
        logits_of(model, variables, images), expected, rtol=0, atol=1e-9 * np.abs(expected).max()
    )
    port.save(tmp_path / "ours", variables, model, format="hf")
    again = transformers.ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False)
    assert torch.equal(again.embeddings.cls_token, theirs.float().embeddings.cls_token)
