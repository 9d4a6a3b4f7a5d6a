"""LaPE for inference: the PE of each layer, a constant there, folded into the first LayerNorm of its block."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lape_jax.errors import UserError
from lape_jax.models.big_vision import BigVisionViT
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.nn.join import JOINS, those
from lape_jax.nn.pe_norm import PENorm
from lape_jax.port.params import from_flat, to_flat

# Paths of the position table, of the biases of the first LayerNorms, and what those of the PE norms begin with.
NAMES = ("pos_embed", "blocks/norm1/bias", "blocks/pe_norm/")
BLOCK = "Transformer/encoderblock/"
LAST, HEAD = "pe_norm_last/", ("head/kernel", "head/bias")
BIG_VISION_NAMES = ("pos_embedding", f"{BLOCK}LayerNorm_0/bias", f"{BLOCK}pe_norm/")


def fold(variables: Mapping[str, Any], model: nn.Module, size: tuple[int, int] | None = None) -> tuple[nn.Module, dict]:
    """A model with the joining that its own `folds_into`, and its variables: the same logits from less work.

    LaPE of both kinds becomes "folded", with no more work than "default". Attention of layer l sees LN1_l(x_l) + pe_l =
    g_l * norm(x_l) + (b_l + pe_l). The sum in brackets depends on the weights alone: it is computed once, in the
    precision that the model has for its PE (float32 at least, whatever the type of the weights), and stored as a table
    (l, n, d), which takes the place of the PE norms, of the position table and of the biases b_l. Per layer that is one
    addition, as of the bias before it, and n d numbers to read.

    MPVG becomes "pvg": what its last PE norm adds to the mean over patches is the same for all images, and goes into
    the head's bias. The PE norms of the blocks stay.

    Args:
        variables: the variables of `model`.
        model: a ViT of any family, with a joining that folds.
        size: height and width of the images that the constants are for, of a model that takes images of any size; if
            not given, those of its `input_shape`.

    Raises:
        UserError: the joining has nothing to fold or does not say how it folds, the model is no ViT, or `variables` are
            not its variables.
    """
    if not isinstance(model, ViT):
        raise UserError(f"a {type(model).__name__} cannot be folded: only models of one width, such as ViTs, can")
    join = model.method
    if join.folds_into is None:
        why = "does not say how its PE norms fold" if join.has_norms else "has no PE norms to fold"
        raise UserError(f"join={model.joining!r} {why}: only {those(lambda method: method.folds_into)} do")
    if not getattr(model, "scan", True):
        raise UserError("a model with scan=False cannot be folded: give its blocks stacked, with scan=True")
    flat, into = to_flat(variables, model), JOINS[join.folds_into]
    if join.last_norm and not into.last_norm:
        flat = _without_last_norm(flat, model, variables)
    if not join.normalises_pe or into.normalises_pe:
        folded = model.clone(join=join.folds_into)
        return folded, from_flat(flat, folded)
    table_path, bias_path, norms = BIG_VISION_NAMES if isinstance(model, BigVisionViT) else NAMES
    size, asked = model.input_shape[:2] if size is None else size, size is not None
    norm = PENorm(model.pe_norm, model.ln_eps, model.no_embed_tokens)
    pe = model.apply(variables, method=lambda module: module.table_for((1, *size, module.in_channels)))
    constants = []
    for layer, bias in enumerate(flat[bias_path]):
        params = {path.removeprefix(norms): flat[path][layer] for path in flat if path.startswith(norms)}
        # What attention sees of a token that the first LayerNorm maps to its bias.
        deliver = functools.partial(norm.apply, {"params": params})
        seen = join.block(jnp.broadcast_to(bias, (1, *pe.shape)), pe, jnp.asarray, deliver)
        constants.append(seen.attention_input[0])
        pe = seen.handed_on
    kept = {path: array for path, array in flat.items() if path != bias_path and not path.startswith(norms)}
    kept[table_path] = np.asarray(jax.device_get(jnp.stack(constants)))
    absolute, _ = position.parse_pe(model.pe)
    changed = {"join": join.folds_into, "pe": model.pe.replace(absolute, position.LEARNABLE), "pe_norm": "layernorm"}
    if model.no_embed_tokens and hasattr(model, "cls_pe"):  # its token has no PE, but it has the bias
        changed["cls_pe"] = True
    if asked:
        changed["image_size"] = size
    if hasattr(model, "table_size"):  # the constants are for its images
        changed["table_size"] = size if asked else model.image_size
    folded = model.clone(**changed)
    return folded, from_flat(kept, folded)


def _without_last_norm(flat: Mapping[str, np.ndarray], model: ViT, variables: Mapping[str, Any]) -> dict:
    """`flat` with W m added to the head's bias, where m is the mean over patches of what the last PE norm delivers."""
    params = {path.removeprefix(LAST): array for path, array in flat.items() if path.startswith(LAST)}
    table = model.apply(variables, method=lambda module: module.position_table)
    placed = PENorm(model.pe_norm, model.ln_eps, model.no_embed_tokens).apply({"params": params}, table)
    mean = np.asarray(jax.device_get(placed), np.float64)[model.num_prefix_tokens :].mean(axis=0)
    kernel, bias = (flat[path] for path in HEAD)
    moved = bias.astype(np.float64) + mean @ kernel.astype(np.float64)
    kept = {path: array for path, array in flat.items() if not path.startswith(LAST)}
    return {**kept, HEAD[1]: moved.astype(jnp.promote_types(bias.dtype, jnp.float32))}
