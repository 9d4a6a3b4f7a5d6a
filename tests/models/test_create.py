"""Models by name: what can be built, and what is said of what cannot."""

import math

import jax.numpy as jnp
import pytest

from lape_jax import models
from lape_jax.errors import UserError

WRONG = [
    # names
    ({"pe": "lernable"}, r"pe='lernable' is not one of learnable, .* \(did you mean 'learnable'\?\)"),
    ({"pe": None}, r"pe='None' is not one of .* \(did you mean 'none'\?\)"),
    ({"join": "laep"}, r"join='laep' is not one of default, .* \(did you mean 'lape'\?\)"),
    ({"join": ""}, "join='' is not one of default, shared"),
    ({"join": 3}, "join='3' is not one of default, shared"),
    ({"join": True}, "join='True' is not one of default, shared"),
    ({"pe_norm": "layer_norm"}, r"pe_norm='layer_norm' is not one of .* \(did you mean 'layernorm'\?\)"),
    ({"pe_norm": ["norm"]}, r"pe_norm=\"\['norm'\]\" is not one of layernorm, norm"),
    ({"pool": "map"}, r"pool='map' is not one of token, gap, seq \(did you mean 'gap'\?\)"),
    ({"remat": "ful"}, r"remat='ful' is not one of auto, none, full, .* \(did you mean 'full'\?\)"),
    (
        {"attention": "cuddn"},
        r"attention='cuddn' is not one of auto, xla, blocks, cudnn, pallas \(did you mean 'cudnn'\?\)",
    ),
    ({"dtype": "float23"}, r"dtype='float23' is not one of bfloat16, float16, .* \(did you mean 'float32'\?\)"),
    ({"dtype": "int32"}, "dtype='int32' is not one of bfloat16"),
    ({"dtype": 3}, "dtype=3 is not one of bfloat16"),
    ({"dtype": None}, "dtype=None is not one of bfloat16"),
    ({"drop_pat": 0.1}, r"setting 'drop_pat' is not one of num_classes, .* \(did you mean 'drop_path'\?\)"),
    ({"parent": None}, "setting 'parent' is not one of num_classes"),
    # sizes
    *(({key: 0}, f"{key}=0 is not positive") for key in ("in_channels", "width", "depth", "heads")),
    ({"num_classes": -1}, "num_classes=-1 is not positive"),
    ({"image_size": 0}, "image_size=0 is not positive"),
    ({"image_size": (224, -224)}, r"image_size=\(224, -224\) is not positive"),
    ({"patch_size": 15}, "image_size=224 is not divisible by patch_size=15"),
    ({"patch_size": (16, 15)}, r"image_size=224 is not divisible by patch_size=\(16, 15\)"),
    ({"patch_size": 448}, "image_size=224 is not divisible by patch_size=448"),
    ({"heads": 5}, "width=192 is not divisible by heads=5"),
    ({"width": 198, "pe": "sincos_2d"}, "pe='sincos_2d' needs a width divisible by 4, not 198"),
    ({"mlp_ratio": 0.005}, "mlp_ratio=0.005 leaves an MLP without hidden units at width=192"),
    ({"mlp_ratio": -1}, "mlp_ratio=-1.0 leaves an MLP without hidden units"),
    ({"dropout": 1}, r"dropout=1.0 is not a rate in \[0, 1\)"),
    ({"attn_dropout": -0.1}, r"attn_dropout=-0.1 is not a rate in \[0, 1\)"),
    ({"drop_path": 1.5}, r"drop_path=1.5 is not a rate in \[0, 1\)"),
    ({"ln_eps": 0}, "ln_eps=0.0 is not a positive number"),
    ({"unroll": 13}, "unroll=13 is neither 'auto' nor between 1 and depth=12"),
    # types
    ({"distilled": "abc"}, "distilled='abc' is not true or false"),
    ({"distilled": 1}, "distilled=1 is not true or false"),
    ({"mlp_ratio": "x"}, "mlp_ratio='x' is not a finite number"),
    ({"mlp_ratio": math.nan}, "mlp_ratio=nan is not a finite number"),
    ({"mlp_ratio": None}, "mlp_ratio=None is not a finite number"),
    ({"layer_scale": "x"}, "layer_scale='x' is not a finite number or None"),
    ({"layer_scale": False}, "layer_scale=False is not a finite number or None"),
    ({"drop_path": True}, "drop_path=True is not a finite number"),
    ({"dropout": (0.1,)}, r"dropout=\(0.1,\) is not a finite number"),
    ({"ln_eps": "1e-6"}, "ln_eps='1e-6' is not a finite number"),
    ({"width": True}, "width=True is not a whole number"),
    ({"depth": 12.0}, "depth=12.0 is not a whole number"),
    ({"heads": None}, "heads=None is not a whole number"),
    ({"num_classes": "10"}, "num_classes='10' is not a whole number"),
    ({"unroll": "all"}, "unroll='all' is neither 'auto' nor between 1 and depth=12"),
    ({"image_size": "224"}, "image_size='224' is not a whole number or a pair of whole numbers"),
    ({"image_size": (224, 224, 3)}, r"image_size=\(224, 224, 3\) is not a whole number or a pair of whole numbers"),
    ({"patch_size": (16, True)}, r"patch_size=\(16, True\) is not a whole number or a pair"),
    # combinations
    *(
        ({"pe": pe, "join": join}, f"join='{join}' delivers an absolute position table, and pe='{pe}' has none: use ")
        for pe in ("none", "relative")
        for join in ("shared", "unshared", "lape_sharing", "lape")
    ),
    ({"pe": "relative", "join": "lape"}, "or a table such as pe='learnable\\+relative'"),
    ({"pe": "none", "join": "lape"}, "or a table such as pe='learnable'"),
    *(
        ({"pe": pe, "join": "unshared"}, "join='unshared' learns a table per layer: it needs pe='learnable'")
        for pe in ("sincos_1d", "sincos_2d", "sincos_2d+relative")
    ),
    ({"join": "shared", "pe_norm": "norm"}, "acts in join='lape', 'lape_sharing', 'mpvg' and 'pvg', not in 'shared'"),
    ({"pe": "none", "pe_norm": "norm"}, "acts in join='lape', 'lape_sharing', 'mpvg' and 'pvg', not in 'default'"),
    ({"distilled": True, "pool": "gap"}, "a distilled model reads its class and distillation tokens: it needs pool="),
    ({"attention": "cudnn", "attn_dropout": 0.1}, "attention='cudnn' has no attention dropout"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[str(overrides) for overrides, _ in WRONG])
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("deit_ti", **overrides)


@pytest.mark.parametrize(("name", "meant"), [("deit_tiny", "deit_ti"), ("vit_mikro", "vit_micro"), ("", None)])
def test_wrong_model_names_are_user_errors(name, meant):
    with pytest.raises(ValueError, match=f"model '{name}' is not one of vit_micro, deit_ti") as error:
        models.create(name)
    assert (f"(did you mean {meant!r}?)" in str(error.value)) == (meant is not None)


def test_literals_become_what_the_fields_are():
    model = models.create("deit_ti", mlp_ratio=2, dropout=0, layer_scale=1, patch_size=[8, 16], dtype="bfloat16")
    assert (model.mlp_ratio, model.dropout, model.layer_scale, model.patch_size) == (2.0, 0.0, 1.0, (8, 16))
    assert type(model.mlp_ratio) is type(model.dropout) is type(model.layer_scale) is float
    assert model.dtype == jnp.bfloat16
    assert model.grid == (28, 14)


@pytest.mark.parametrize(
    ("pe", "joining"),
    [("learnable", "lape"), ("sincos_2d+relative", "lape"), ("relative", "default"), ("none", "default")],
)
def test_joining_by_default(pe, joining):
    assert models.create("deit_ti", pe=pe).joining == joining
    assert models.create("deit_ti", pe=pe, join=joining).joining == joining
