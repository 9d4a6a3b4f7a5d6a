"""The ViT of `lape_jax.models.big_vision` for google-research/big_vision's own trainer and evaluators.

big_vision takes a model from the module `big_vision.models.NAME` that `config.model_name` names. One line in a file
there, such as `big_vision/models/lape_vit.py`, and `config.model_name = "lape_vit"` put LaPE into any of its configs:

    from lape_jax.models.big_vision_vit import Model, load

Neither big_vision nor TensorFlow is imported here. `config.model` has its usual keys and, beside them, `join`,
`pe_norm` and `cls_pe`; images are in [-1, 1]. Parameters have big_vision's names, and LaPE adds `pe_norm/{scale,bias}`
to each block; they are float32 whatever `dtype_mm` is. Weight decay on `.*/kernel` leaves them alone, as it should.

This module stands above the models: `load` reads files by `lape_jax.port`.
"""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from lape_jax.errors import UserError, nearest
from lape_jax.models.big_vision import SIZES, BigVisionViT
from lape_jax.nn import position
from lape_jax.nn.join import PUBLISHED
from lape_jax.port import big_vision as names
from lape_jax.port import files
from lape_jax.port.params import check

POSEMB = {"learn": position.LEARNABLE, "sincos2d": position.SINCOS_2D_MOCO}
# What big_vision's `remat_policy`, a name in `jax.checkpoint_policies`, is called here.
REMAT = {
    "nothing_saveable": "full",
    "dots_saveable": "dots",
    "dots_with_no_batch_dims_saveable": "dots_without_batch",
    "everything_saveable": "none",
}
TABLE, CLS, PE_NORM = "pos_embedding", "cls", "/pe_norm/"
logger = logging.getLogger(__name__)


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> nn.Module:
    """The model for `config.num_classes` and `**config.model`.

    Args:
        variant: see `decode_variant`.
        kw: attributes of `BigVisionModel`, which take precedence.

    Raises:
        UserError: an unknown variant or attribute.
    """
    for key in kw:
        if key not in _FIELDS:
            raise UserError(f"config.model.{nearest(key, _FIELDS)}")
    return BigVisionModel(num_classes, **{**decode_variant(variant), **kw})


def decode_variant(variant: str | None) -> dict[str, Any]:
    """The attributes that a name such as "B", "S/16" or None stands for.

    Raises:
        UserError: there is no such variant.
    """
    if variant is None:
        return {}
    size, _, patch = variant.partition("/")
    if size not in SIZES or ("/" in variant and not patch.isdecimal()):
        raise UserError(f"variant={nearest(size, SIZES)}, each with a patch size or without: S/16, S")
    attributes = dict(zip(("width", "depth", "mlp_dim", "num_heads"), SIZES[size], strict=True))
    return attributes | ({"patch_size": (int(patch), int(patch))} if patch else {})


class BigVisionModel(nn.Module):
    """`BigVisionViT` under big_vision's names of attributes, for images of whatever size the first ones have.

    Attributes: those of big_vision's ViT; and `join` (None: "lape"), `pe_norm` and `cls_pe`, see `BigVisionViT`.
    `posemb` may also be the `pe` of another table, such as "sincos_2d". As in big_vision, `remat_policy` acts if `scan`
    is set.
    """

    num_classes: int | None = None
    patch_size: Sequence[int] = (16, 16)
    width: int = 768
    depth: int = 12
    mlp_dim: int | None = None
    num_heads: int = 12
    posemb: str = "learn"
    rep_size: int | bool = False
    dropout: float = 0.0
    pool_type: str = "gap"
    head_zeroinit: bool = True
    scan: bool = False
    remat_policy: str = "nothing_saveable"
    dtype_mm: str = "float32"
    join: str | None = None
    pe_norm: str = "layernorm"
    cls_pe: bool = False

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], *, train: bool = False) -> tuple[Float[Array, "b *n k"], dict]:
        """Logits, and big_vision's `out`.

        `out` has stem, with_posemb, encoder (block00 and so on with sa, +sa, mlp, +mlp; pre_ln), encoded, head_input,
        pre_logits, pre_logits_2d, and with a head logits and logits_2d. Where LaPE delivers a PE, out["encoder"]["pe"]
        is it, (layers, tokens, width). `with_posemb` has the position table added only if join="default".

        Raises:
            UserError: attributes that describe no model, or images that the patches do not divide.
        """
        vit = self.vit(image.shape)
        nn.share_scope(self, vit)
        logits, found = vit(image, train)
        steps = {"sa": "attended", "+sa": "residual", "mlp": "transformed", "+mlp": "tokens"}
        encoder = {
            f"block{layer:02d}": {theirs: found[ours][layer] for theirs, ours in steps.items()}
            for layer in range(self.depth)
        }
        encoder["pre_ln"] = found["tokens"][-1]
        if found["pe"] is not None:
            encoder["pe"] = found["pe"]
        same = ("with_posemb", "encoded", "head_input", "pre_logits", "pre_logits_2d", "logits", "logits_2d")
        out = {name: found[name] for name in same if name in found}
        return logits, {"stem": found["patches"], "encoder": encoder, **out}

    def vit(self, shape: tuple[int, ...]) -> BigVisionViT:
        """The model for images of this shape, (batch, height, width, channels).

        Raises:
            UserError: an unknown `remat_policy`.
        """
        if self.remat_policy not in REMAT:
            raise UserError(f"remat_policy={nearest(self.remat_policy, REMAT)}")
        return BigVisionViT(
            num_classes=self.num_classes,
            image_size=tuple(shape[1:3]),
            patch_size=tuple(self.patch_size),
            in_channels=shape[3],
            width=self.width,
            depth=self.depth,
            heads=self.num_heads,
            mlp_ratio=4.0 if self.mlp_dim is None else self.mlp_dim / self.width,
            pe=POSEMB.get(self.posemb, self.posemb),
            join=self.join,
            pe_norm=self.pe_norm,
            pool=self.pool_type,
            rep_size=self.rep_size,
            head_zeroinit=self.head_zeroinit,
            cls_pe=self.cls_pe,
            dropout=self.dropout,
            scan=self.scan,
            remat=REMAT[self.remat_policy] if self.scan else "none",
            dtype=self.dtype_mm,
        )


_FIELDS = [name for name in BigVisionModel.__dataclass_fields__ if name not in ("num_classes", "parent")]


def load(
    init_params: Mapping[str, Any],
    init_file: str | os.PathLike | Mapping[str, Any],
    model_cfg: Mapping[str, Any] | None,
    dont_load: str | Sequence[str] = (),
) -> dict:
    """`init_params` with the weights of a file in their place, as big_vision's trainer asks for `config.model_init`.

    Names and layouts of all times are understood, see `lape_jax.port.from_big_vision`. The position table is resized as
    big_vision does it, if the grid differs; both are then square. Where the file has no PE norms at all, being from
    default joining, they keep their initial values, and a warning says so. A row that an old table has for the class
    token is added to that token with join="default", and needs cls_pe=True otherwise.

    Args:
        init_params: the model's parameters, of whose types the result is.
        init_file: a local file, `FILE.npz` or `FILE.npz:img` for what is under `img/` in it (looked for there anyway);
            or parameters by name, nested or not.
        model_cfg: `config.model`.
        dont_load: patterns of whole names that keep their initial values, or that the file may have in excess.

    Raises:
        UserError: the file cannot be read, or has too much, too little, or other shapes.
    """
    inited = flatten_dict(init_params, sep="/")
    found, place = _read(init_file)
    if any("/encoderblock_0/" in name for name in inited):
        found = names.unstack(found)
    skip = [re.compile(pattern) for pattern in ([dont_load] if isinstance(dont_load, str) else dont_load)]

    def chosen(all_names):
        return [name for name in all_names if not any(pattern.fullmatch(name) for pattern in skip)]

    wanted = chosen(inited)
    if TABLE in found and TABLE in wanted:
        found = _fit_table(found, CLS in wanted, inited[TABLE].shape, dict(model_cfg or {}))
    norms = [name for name in wanted if PE_NORM in name]
    if norms and not any(PE_NORM in name for name in found):
        logger.warning("%s has no PE norms; these start from their initial values: %s", place, ", ".join(norms))
        wanted = [name for name in wanted if name not in norms]
    check({name: found[name] for name in chosen(found)}, {name: inited[name].shape for name in wanted}, place)
    logger.info("%s: not loaded, but initialised: %s", place, ", ".join(name for name in inited if name not in wanted))
    loaded = {name: found[name].astype(inited[name].dtype) for name in wanted}
    return unflatten_dict({**inited, **loaded}, sep="/")


def _read(source: str | os.PathLike | Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    """Arrays by canonical name, and how to speak of where they come from."""
    if isinstance(source, Mapping):
        return names.canonical(source), "the checkpoint"
    path, tower = re.fullmatch(r"(.*?)(?::(\w+))?", os.fspath(source)).groups()
    weights, place = files.read(path)
    try:
        return names.canonical(weights, tower), place
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _fit_table(
    found: dict[str, np.ndarray], has_cls: bool, shape: tuple[int, ...], settings: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """`found` with a position table that has as many rows as `shape` says, for the class token and for patches."""
    cls_pe = bool(settings.get("cls_pe"))
    rows, patches = found[TABLE].shape[1], shape[1] - cls_pe
    if rows == shape[1]:
        return found
    old, new = math.isqrt(rows), math.isqrt(patches)
    extra = rows - old**2
    if extra > 1 or new**2 != patches:
        raise UserError(f"position tables of {rows} and {shape[1]} rows are not both of square grids")
    if extra < cls_pe:
        raise UserError("the file's position table has no row for the class token: leave cls_pe=True out")
    if extra and not cls_pe and has_cls:
        found = names.without_class_row(found, settings.get("join") or PUBLISHED)
    elif extra and not cls_pe:
        found = {**found, TABLE: found[TABLE][:, 1:]}
    return {**found, TABLE: _resample(found[TABLE], int(cls_pe), old, new)}


def _resample(table: np.ndarray, num_prefix_tokens: int, old: int, new: int) -> np.ndarray:
    """The patches' rows of a table (l, n, d), interpolated linearly between the corners' centres, which stay."""
    if old == new:
        return table
    at = np.linspace(0, old - 1, new)
    below = np.minimum(at.astype(int), max(old - 2, 0))
    weights = np.zeros((new, old))
    weights[np.arange(new), np.minimum(below + 1, old - 1)] = at - below
    weights[np.arange(new), below] += 1 - (at - below)
    extra, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    patches = patches.reshape(len(table), old, old, -1).astype(np.float64)
    resized = np.einsum("ri,sj,lijd->lrsd", weights, weights, patches, optimize=True)
    return np.concatenate([extra, resized.reshape(len(table), new * new, -1).astype(table.dtype)], axis=1)
