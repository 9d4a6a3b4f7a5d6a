"""Models by name: `create("deit_ti", join="lape", num_classes=100)`."""

import dataclasses

import flax.linen as nn

from lape_jax.errors import UserError, nearest
from lape_jax.models.big_vision import SIZES, BigVisionViT
from lape_jax.models.ceit import CeiT
from lape_jax.models.compact import CCT, ViTLite
from lape_jax.models.fields import cast
from lape_jax.models.mask_rcnn import MaskRCNN
from lape_jax.models.regnet import RegNet
from lape_jax.models.segmenter import DECODERS, Segmenter
from lape_jax.models.swin import Swin
from lape_jax.models.t2t import T2TViT
from lape_jax.models.upernet import UperNet
from lape_jax.models.vit import ViT
from lape_jax.models.vit_adapter import ViTAdapter

_DEIT = {
    "deit_ti": {"width": 192, "depth": 12, "heads": 3},
    "deit_s": {"width": 384, "depth": 12, "heads": 6},
    "deit_b": {"width": 768, "depth": 12, "heads": 12},
}
# big_vision's, whose width, depth, hidden channels and heads are these; patches of 16 x 16
_BIG_VISION = {
    f"vit_{size.lower()}_16": {"width": width, "depth": depth, "heads": heads, "mlp_ratio": hidden / width}
    for size, (width, depth, hidden, heads) in SIZES.items()
    if size in ("Ti", "S", "B", "L")
}
_ADAPTED = {"ti": {**_DEIT["deit_ti"], "drop_path": 0.1}, "s": {**_DEIT["deit_s"], "drop_path": 0.2}}
_CCT_14 = {"image_size": 224, "width": 384, "depth": 14, "heads": 6, "mlp_ratio": 3.0}
_T2T_14 = {"width": 384, "depth": 14, "heads": 6, "mlp_ratio": 3.0}
VARIANTS = {
    # A ViT for 8x8 to 32x32 images, for trying things out; not from a paper.
    "vit_micro": (ViT, {"width": 64, "depth": 6, "heads": 4, "image_size": 32, "patch_size": 4}),
    **{name: (ViT, sizes) for name, sizes in _DEIT.items()},
    **{name: (BigVisionViT, sizes) for name, sizes in _BIG_VISION.items()},
    "vit_lite_6_4": (ViTLite, {"depth": 6}),
    "vit_lite_7_4": (ViTLite, {}),
    "cvt_6_4": (ViTLite, {"depth": 6, "pool": "seq"}),
    "cvt_7_4": (ViTLite, {"pool": "seq"}),
    # CCT-depth/kernel x convolutions
    "cct_6_3x1": (CCT, {"depth": 6}),
    "cct_7_3x1": (CCT, {}),
    "cct_6_3x2": (CCT, {"depth": 6, "conv_layers": 2}),
    "cct_7_3x2": (CCT, {"conv_layers": 2}),
    "cct_14_7x2": (CCT, {**_CCT_14, "kernel_size": 7, "conv_layers": 2}),
    "t2t_vit_7": (T2TViT, {}),
    "t2t_vit_10": (T2TViT, {"depth": 10}),
    "t2t_vit_12": (T2TViT, {"depth": 12}),
    "t2t_vit_14": (T2TViT, _T2T_14),
    "t2t_vit_t_14": (T2TViT, {**_T2T_14, "token_attention": "transformer", "token_dropout": 0.0}),
    "swin_t": (Swin, {}),
    "swin_s": (Swin, {"depths": (2, 2, 18, 2)}),
    "ceit_ti": (CeiT, {}),
    "ceit_s": (CeiT, {"width": 384, "heads": 6}),
    **{f"{name}_distilled": (ViT, {**sizes, "distilled": True}) for name, sizes in _DEIT.items()},
    # segmenter_ti_mask, segmenter_ti_linear and so on, of the sizes of DeiT
    **{
        f"{name.replace('deit', 'segmenter')}_{decoder}": (Segmenter, {**sizes, "decoder_type": decoder})
        for name, sizes in _DEIT.items()
        for decoder in DECODERS
    },
    **{f"vit_adapter_{size}": (ViTAdapter, settings) for size, settings in _ADAPTED.items()},
    **{f"upernet_vit_adapter_{size}": (UperNet, settings) for size, settings in _ADAPTED.items()},
    **{f"mask_rcnn_vit_adapter_{size}": (MaskRCNN, settings) for size, settings in _ADAPTED.items()},
    "regnety_160": (RegNet, {}),  # a teacher: cannot be trained
}


def create(name: str, **overrides) -> nn.Module:
    """The model called `name`, with any of its attributes overridden.

    Raises:
        UserError (a ValueError): unknown name or attribute, a value of a wrong type, or a combination that cannot be
            built.
    """
    if name not in list(VARIANTS):  # a list, as `name` may be something that has no hash
        raise UserError(f"model {nearest(name, VARIANTS)}")
    family, settings = VARIANTS[name]
    fields = {field.name: field for field in dataclasses.fields(family) if field.name not in ("parent", "name")}
    for key in overrides:
        if key not in fields:
            raise UserError(f"setting {nearest(key, fields)} of model {name!r}")
    chosen = {key: cast(fields[key], value) for key, value in overrides.items()}
    model = family(**{**settings, **chosen})
    model.check()
    return model
