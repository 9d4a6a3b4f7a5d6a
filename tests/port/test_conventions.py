"""Whose names a file has."""

import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port.conventions import convention
from tests.port.test_checkpoint import FAMILIES
from tests.port.tiny import random_variables, tiny

OTHERS = {
    "Hugging Face's ViT or DeiT": [
        "vit.encoder.layer.0.attention.attention.query.weight",
        "deit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "embeddings.cls_token",
        "encoder.layer.11.layernorm_before.bias",
        "encoder.layer.3.intermediate.dense.weight",
        "vit.layers.0.attention.q_proj.weight",
    ],
    "Hugging Face's Swin": [
        "swin.encoder.layers.0.blocks.1.attention.self.query.weight",
        "swin.encoder.layers.3.blocks.1.layernorm_before.weight",
        "encoder.layers.0.blocks.0.attention.output.dense.bias",
    ],
    "Hugging Face's CLIP or SigLIP": ["vision_model.encoder.layers.0.self_attn.q_proj.weight"],
    "torchvision's ViT": ["encoder.layers.encoder_layer_0.ln_1.weight", "conv_proj.weight", "module.class_token"],
    "torchvision's Swin": ["features.1.0.attn.qkv.weight", "features.1.0.norm1.weight"],
    "OpenAI's or OpenCLIP's CLIP": ["visual.transformer.resblocks.0.attn.in_proj_weight"],
    "vit-pytorch's": ["transformer.layers.0.0.norm.weight", "to_patch_embedding.1.weight"],
    "a ResNet's": ["layer1.0.conv1.weight"],
    "timm's RegNet": ["s1.b1.conv1.conv.weight"],
    "ViT-Adapter's": ["backbone.interactions.0.injector.gamma"],
    "DeiT's or timm's ViT": ["blocks.0.attn.qkv.weight", "backbone.blocks.11.norm1.bias"],
    "": ["weight", "a.b.c", "layers.0.weight", "head.weight", "cls_token"],
}


@pytest.mark.parametrize(("who", "name"), [(who, name) for who, names in OTHERS.items() for name in names])
def test_names_of_others(who, name):
    assert convention(["epoch.x", name]) == who


WHOSE = {
    "swin_t": "Swin's or timm's Swin",
    "t2t_vit_7": "T2T-ViT's",
    "ceit_ti": "CeiT's",
    "cct_7_3x1": "Compact Transformers'",
    "segmenter_ti_mask": "Segmenter's",
    "segmenter_ti_linear": "Segmenter's",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_names_that_are_written(name):
    model = models.create(name, **FAMILIES[name], num_classes=3)
    variables = random_variables(model)
    assert convention(port.to_torch(variables, model)) == WHOSE[name]
    assert convention(port.files.to_flat(variables, model)) == "lape_jax's"
    if "segmenter" in name:
        assert convention(port.files.to_mmseg(variables, model)) == "MMSegmentation's"


def test_big_visions():
    model = models.create("vit_ti_16", width=16, depth=1, heads=2, image_size=16, patch_size=8)
    assert convention(port.to_big_vision(random_variables(model), model)) == "big_vision's"


def test_a_message_is_short():
    names = [f"vit.encoder.layer.{i}.attention.output.dense.LayerNorm{j}.weight" for i in range(12) for j in range(9)]
    state_dict = port.to_torch(random_variables(tiny()), tiny())
    for given in (
        dict.fromkeys(names, state_dict["head.bias"]),
        {**state_dict, **dict.fromkeys(names, state_dict["head.bias"])},
    ):
        with pytest.raises(UserError) as caught:
            port.from_torch(given, tiny(depth=3))
        assert len(str(caught.value)) < 400
        assert "Hugging Face's ViT or DeiT names (" in str(caught.value)
