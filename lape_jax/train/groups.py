"""What multiplies learning rate and weight decay of each parameter: (regex, factor) rules, and a decay by depth.

A factor is a number, or for parameters that are stacked, (layers, ...), a tuple with one for each layer. To what the
rules give for the learning rate, `layer_decay` = d adds a factor that falls towards the image:
    lr_mult(p) = rule(p) * d^(depth + 1 - id(p))      with the ids of `lape_jax.models.depth`; d = 1 is off
(Clark et al., ELECTRA, arXiv:2003.10555; Bao et al., BEiT, arXiv:2106.08254).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lape_jax.errors import UserError
from lape_jax.models import depth, rules

LR_MULTS = ((r".*", 1.0),)


def default_wd_mults(no_weight_decay: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Which parameters decay in timm's and the official LaPE's training: the rules behind `optimizer.wd_mults = ()`.

    No decay for every bias, every normalisation scale (norm1, norm2, pe_norm of any kind, the final norm) and every
    LayerScale gamma, that is for all tensors that are 1-D in one block, and for what the model declares itself.
    Source: `add_weight_decay` in timm.

    Args:
        no_weight_decay: patterns of whole names, as models have them.
    """
    return ((r"(.*/)?(bias|scale|gamma)", 0.0), *((pattern, 0.0) for pattern in no_weight_decay), (r".*", 1.0))


def multipliers(config: Any, params: Any, no_weight_decay: Sequence[str]) -> tuple[Any, Any]:
    """The trees (lr multiplier, weight-decay multiplier), each with a number or a vector of layers per parameter.

    A learning rate that is multiplied by 0 in every layer is the number 0.

    Args:
        config: with lr_mults, wd_mults (empty: `LR_MULTS`, `default_wd_mults`) and layer_decay.
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).
        no_weight_decay: as for `default_wd_mults`.

    Raises:
        UserError: a parameter that no rule covers, a bad rule or factor, or a layer_decay for a model without blocks.
    """
    lr = _numbers(config.lr_mults or LR_MULTS, params, "config.optimizer.lr_mults")
    wd = _numbers(config.wd_mults or default_wd_mults(no_weight_decay), params, "config.optimizer.wd_mults")
    if config.layer_decay != 1:
        ids, last = depth.layer_ids(params)
        if last == 1:
            raise UserError(
                f"config.optimizer.layer_decay is {config.layer_decay:g}, but the model has no stacked blocks for it "
                f"to act on: leave it at 1"
            )
        lr = jax.tree.map(lambda mult, layer: mult * config.layer_decay ** (last - layer), lr, ids)
    return jax.tree.map(lambda mult: mult if np.any(mult) else 0.0, lr), wd


def describe(config: Any, params: Any, no_weight_decay: Sequence[str]) -> list[str]:
    """Lists, for the log, each group of parameters with equal multipliers; stacked ones count once."""
    lr_mults, wd_mults = multipliers(config, params, no_weight_decay)
    tensors, numbers = Counter(), Counter()
    groups = zip(jax.tree.leaves(lr_mults), jax.tree.leaves(wd_mults), jax.tree.leaves(params), strict=True)
    for lr, wd, leaf in groups:
        group = tuple(np.atleast_1d(lr)), tuple(np.atleast_1d(wd if np.any(lr) else 0.0))
        tensors[group] += 1
        numbers[group] += math.prod(leaf.shape)
    ordered = sorted(tensors, key=lambda group: [(max(mults), mults) for mults in group], reverse=True)
    return [
        f"{f'lr x {_span(lr)}, weight decay x {_span(wd)}' if any(lr) else 'frozen'}: "
        f"{tensors[lr, wd]} tensors, {numbers[lr, wd]:,} parameters"
        for lr, wd in ordered
    ]


def _span(mults: tuple[float, ...]) -> str:
    return f"{mults[0]:g}" if len(mults) == 1 else f"{min(mults):g} to {max(mults):g} by layer"


def _numbers(pairs: Sequence[Any], params: Any, setting: str) -> Any:
    def number(value):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{setting}: the multiplier {value!r} is not a number >= 0")
        return float(value)

    def factor(path, leaf, value):
        if not isinstance(value, tuple | list):
            return number(value)
        name, shape = rules.path_name(path), tuple(leaf.shape)
        if not rules.is_stacked(name, shape):
            raise UserError(
                f"{setting}: {name!r} is not stacked by layers: its multiplier is one number, not {value!r}"
            )
        if len(value) != shape[0]:
            raise UserError(
                f"{setting}: {len(value)} multipliers for the {shape[0]} layers of {name!r}: give one for each"
            )
        return np.array([number(item) for item in value])

    return jax.tree_util.tree_map_with_path(factor, params, rules.assign(pairs, params, setting=setting))
