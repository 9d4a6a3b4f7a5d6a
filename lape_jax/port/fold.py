"""LaPE for inference: the PE of each layer, a constant there, folded into the first LayerNorm of its block."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lape_jax.errors import UserError
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.nn.join import FOLDED, JOINS, PENorm
from lape_jax.port.params import from_flat, to_flat

BIAS, TABLE, PE_NORM = "blocks/norm1/bias", "pos_embed", "blocks/pe_norm/"


def fold(variables: Mapping[str, Any], model: nn.Module) -> tuple[nn.Module, dict]:
    """A model with join="folded", and its variables, that gives the logits of `model` with no more work than "default".

    Attention of layer l sees LN1_l(x_l) + pe_l = g_l * norm(x_l) + (b_l + pe_l). The sum in brackets depends on the
    weights alone: it is computed once, in the precision that the model has for its PE, and stored as a table (l, n, d),
    which takes the place of the PE norms, of the position table and of the biases b_l. Per layer that is one addition,
    as of the bias before it, and n d numbers to read.

    Args:
        variables: of `model`.
        model: a ViT of any family with join="lape" or "lape_sharing".

    Raises:
        UserError: the joining has nothing to fold, the model is no ViT, or `variables` are not its variables.
    """
    if not isinstance(model, ViT):
        raise UserError(f"a {type(model).__name__} cannot be folded: only models of one width, such as ViTs, can")
    join = JOINS[model.joining]
    if not join.normalises_pe:
        raise UserError(f"join={model.joining!r} has no PE norms to fold: only 'lape' and 'lape_sharing' do")
    flat = to_flat(variables, model)
    norm = PENorm(model.pe_norm, model.ln_eps)
    pe = model.apply(variables, method=lambda module: module.position_table)
    constants = []
    for layer, bias in enumerate(flat[BIAS]):
        params = {path.removeprefix(PE_NORM): flat[path][layer] for path in flat if path.startswith(PE_NORM)}
        # What attention sees of a token that the first LayerNorm maps to its bias.
        deliver = functools.partial(norm.apply, {"params": params})
        seen = join.attend(jnp.broadcast_to(bias, (1, *pe.shape)), pe, jnp.asarray, deliver)
        constants.append(seen.attention_input[0])
        pe = seen.handed_on
    kept = {path: array for path, array in flat.items() if path != BIAS and not path.startswith(PE_NORM)}
    kept[TABLE] = np.asarray(jax.device_get(jnp.stack(constants)), flat[BIAS].dtype)
    absolute, _ = position.parse_pe(model.pe)
    folded = model.clone(join=FOLDED, pe=model.pe.replace(absolute, position.LEARNABLE), pe_norm="layernorm")
    return folded, from_flat(kept, folded)
