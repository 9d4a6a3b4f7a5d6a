"""Models by name: `create("deit_ti", join="lape", num_classes=100)`."""

import dataclasses

import flax.linen as nn

from lape_jax.errors import UserError, nearest
from lape_jax.models.compact import ViTLite
from lape_jax.models.fields import cast
from lape_jax.models.regnet import RegNet
from lape_jax.models.vit import ViT

_DEIT = {
    "deit_ti": {"width": 192, "depth": 12, "heads": 3},
    "deit_s": {"width": 384, "depth": 12, "heads": 6},
    "deit_b": {"width": 768, "depth": 12, "heads": 12},
}
VARIANTS = {
    # A ViT for 8x8 to 32x32 images, for trying things out; not from a paper.
    "vit_micro": (ViT, {"width": 64, "depth": 6, "heads": 4, "image_size": 32, "patch_size": 4}),
    **{name: (ViT, sizes) for name, sizes in _DEIT.items()},
    "vit_lite_6_4": (ViTLite, {"depth": 6}),
    "vit_lite_7_4": (ViTLite, {}),
    **{f"{name}_distilled": (ViT, {**sizes, "distilled": True}) for name, sizes in _DEIT.items()},
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
