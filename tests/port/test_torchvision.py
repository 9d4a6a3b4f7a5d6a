"""torchvision's names: its ViTs and Swins, and what they answer."""

import functools

import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests import peers
from tests.port.test_huggingface import leaves, logits_of
from tests.port.test_swin import tiny as swin
from tests.port.tiny import TINY, identical, random_variables, tiny

LAYER = ("ln_1", "self_attention.out_proj", "ln_2", "mlp.0", "mlp.3")
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.0", "mlp.3")


def written(model, path):
    variables = random_variables(model)
    port.save(path, variables, model, format="torchvision")
    with np.load(path) as file:
        return variables, dict(file)


def test_vit(tmp_path):
    model = tiny(join="default")
    variables, arrays = written(model, tmp_path / "a.npz")
    layers = [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    expected = {"class_token", "encoder.pos_embedding", *leaves("conv_proj", "encoder.ln", "heads.head")}
    expected |= leaves(*(f"{layer}.{part}" for layer in layers for part in LAYER))
    expected |= {f"{layer}.self_attention.in_proj_{leaf}" for layer in layers for leaf in ("weight", "bias")}
    assert set(arrays) == expected
    identical(port.load(tmp_path / "a.npz", model), variables)
    older = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): array for name, array in arrays.items()
    }
    identical(port.from_torch({"model_ema": {f"module.{n}": x for n, x in older.items()}}, model), variables)


def test_swin(tmp_path):
    model = swin(pe="relative", join="default")
    variables, arrays = written(model, tmp_path / "a.npz")
    blocks = ("features.1.0", "features.1.1", "features.3.0")
    expected = leaves("features.0.0", "features.0.2", "features.2.norm", "norm", "head")
    expected |= {"features.2.reduction.weight", *leaves(*(f"{block}.{part}" for block in blocks for part in BLOCK))}
    expected |= {f"{block}.attn.relative_position_{what}" for block in blocks for what in ("bias_table", "index")}
    assert set(arrays) == expected
    assert arrays["features.1.0.attn.relative_position_index"].shape == (16 * 16,)
    identical(port.load(tmp_path / "a.npz", model), variables)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny(), "join='lape': torchvision's ViT has 'default', so must the model have"),
        (lambda: tiny(join="default", ln_eps=1e-12), "ln_eps=1e-12: torchvision's ViT has 1e-06"),
        (lambda: swin(join="default"), "pe='learnable.relative': torchvision's Swin has 'relative'"),
        (lambda: models.create("cct_7_3x1"), "a CCT has no names in torchvision"),
    ],
)
def test_what_torchvision_does_not_have(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        port.save(tmp_path / "a.npz", {}, model(), format="torchvision")


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_torchvisions_answers(tmp_path, kind):
    torchvision, torch = peers.torchvision(), pytest.importorskip("torch")
    eps = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    if kind == "vit":
        model = tiny(join="default")
        theirs = torchvision.models.VisionTransformer(
            16, 8, 2, 2, 32, 128, num_classes=TINY["num_classes"], norm_layer=eps
        )
    else:
        model = swin(pe="relative", join="default")
        theirs = torchvision.models.SwinTransformer([2, 2], 8, [2, 1], [2, 4], [4, 4], num_classes=3)
    variables, _ = written(model, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        theirs.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
    images = np.random.default_rng(0).standard_normal((2, *model.input_shape))
    with torch.no_grad():
        expected = theirs.double().eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(
        logits_of(model, variables, images), expected, rtol=0, atol=1e-9 * np.abs(expected).max()
    )
    torch.save({"model": theirs.float().state_dict()}, tmp_path / "theirs.pth")
    identical(port.load(tmp_path / "theirs.pth", model), variables)
