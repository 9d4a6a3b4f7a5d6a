"""The optimiser: AdamW with decoupled decay, timm's cosine schedule, and multipliers by (regex, value) rules.

For parameter p with gradient g, at update t = 0, 1, 2, ... with learning rate lr(t):
    g  <- g * min(1, clip_norm / ||all gradients||)                    only if clip_norm > 0
    m  <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
    u   = m / (1 - beta1^(t+1)) / (sqrt(v / (1 - beta2^(t+1))) + eps)
    p  <- p - lr(t) * lr_mult(p) * (u + weight_decay * wd_mult(p) * p)
This is `torch.optim.AdamW` with one parameter group per pair of multipliers (Loshchilov & Hutter, arXiv:1711.05101).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lape_jax.errors import UserError
from lape_jax.train import rules

LR_MULTS = ((r".*", 1.0),)


def default_wd_mults(params: Any) -> tuple[tuple[str, float], ...]:
    """Which parameters decay in timm's and the official LaPE's training: the rules behind `optimizer.wd_mults = ()`.

    No decay for every bias, every normalisation scale (norm1, norm2, pe_norm of any kind, the final norm) and every
    LayerScale gamma, that is for all tensors that are 1-D in one block, and for `cls_token` and `pos_embed`.
    Everything else decays, also `dist_token`, `relative_position_bias_table`, and the unshared position tables: the
    official code calls those `pos_embed0`, `pos_embed1`, ..., which its no-decay list misses. Here they are one
    `pos_embed` of shape (layers, rows, width), told from the shared (rows, width) by its number of axes.
    Source: `no_weight_decay` in Ingrid725/LaPE vision_transformer.py and `add_weight_decay` in timm.

    Args:
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).
    """
    unshared = {name for name, leaf in rules.flat_names(params).items() if name == "pos_embed" and len(leaf.shape) == 3}
    return (
        (r"(.*/)?(bias|scale|gamma)", 0.0),
        (r"cls_token", 0.0),
        (r"pos_embed", 1.0 if unshared else 0.0),
        (r".*", 1.0),
    )


def schedule(config: Any, total_steps: int, warmup_steps: int) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Learning rate by update t: linear warm-up into a cosine that is counted from t = 0 (warm-up *not* prefixed).

        t < W:       warmup_lr + t (lr - warmup_lr) / W
        W <= t < T:  min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2
        t >= T:      min_lr
    so lr(W) is already slightly below the peak. Source: timm 0.3.4 `CosineLRScheduler` (there stepped per epoch, here
    per update).

    Args:
        config: with lr, warmup_lr and min_lr.
        total_steps: T, updates in the whole run.
        warmup_steps: W.

    Returns:
        A function of the update count, usable inside jit and for logging.

    Raises:
        UserError: T is not positive, or W is not within 0..T.
    """
    if total_steps < 1:
        raise UserError(f"the schedule needs at least 1 training step, not {total_steps}")
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(f"warm-up of {warmup_steps} steps does not fit into {total_steps} training steps")
    lr, warmup_lr, min_lr = config.lr, config.warmup_lr, config.min_lr

    def learning_rate(step):
        # (1 + cos(pi t/T)) / 2 = sin^2(pi (T - t) / 2T), which is also precise near the end of the run in float32
        cosine = min_lr + (lr - min_lr) * jnp.sin(0.5 * math.pi * (total_steps - step) / total_steps) ** 2
        after_warmup = jnp.where(step < total_steps, cosine, min_lr)
        warmup = warmup_lr + step * (lr - warmup_lr) / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warmup, after_warmup)

    return learning_rate


def make(config: Any, params: Any, total_steps: int, warmup_steps: int) -> optax.GradientTransformation:
    """The optimiser of the module docstring, as one optax transformation.

    A parameter with lr multiplier 0 is frozen: its gradient does not count in the clipping norm and it never moves.
    The number of updates is counted inside, so the state needs no step from outside. Gradient accumulation is the
    training step's business: one update per call here.

    Args:
        config: with lr, warmup_lr, min_lr, weight_decay, beta1, beta2, eps, clip_norm (0: off), and the ordered
            (regex, value) lists lr_mults and wd_mults (empty: `LR_MULTS`, `default_wd_mults`).
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).
        total_steps: T of the schedule.
        warmup_steps: W of the schedule.

    Raises:
        UserError: a parameter that no rule covers, a bad rule or multiplier, or an impossible schedule.
    """
    lr_mults, wd_mults = multipliers(config, params)
    # Always the same pieces, so that a run can be resumed with, for example, another clip_norm.
    return optax.chain(
        _scale(jax.tree.map(lambda mult: float(mult != 0), lr_mults)),
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        _decay(config, wd_mults),
        optax.scale_by_learning_rate(schedule(config, total_steps, warmup_steps)),
        _scale(lr_mults),
    )


def multipliers(config: Any, params: Any) -> tuple[Any, Any]:
    """The trees (lr multiplier, weight-decay multiplier) of floats, one per parameter."""
    lr = _numbers(config.lr_mults or LR_MULTS, params, "optimizer.lr_mults")
    wd = _numbers(config.wd_mults or default_wd_mults(params), params, "optimizer.wd_mults")
    return lr, wd


def describe(config: Any, params: Any) -> list[str]:
    """One line per group of parameters with equal multipliers, largest learning rate first, for the log."""
    lr_mults, wd_mults = multipliers(config, params)
    tensors, numbers = Counter(), Counter()
    groups = zip(jax.tree.leaves(lr_mults), jax.tree.leaves(wd_mults), jax.tree.leaves(params), strict=True)
    for lr, wd, leaf in groups:
        group = (lr, wd if lr else 0.0)
        tensors[group] += 1
        numbers[group] += math.prod(leaf.shape)
    return [
        f"{'frozen' if lr == 0 else f'lr x {lr:g}, weight decay x {wd:g}'}: "
        f"{tensors[lr, wd]} tensors, {numbers[lr, wd]:,} parameters"
        for lr, wd in sorted(tensors, reverse=True)
    ]


def _numbers(pairs: Sequence[Any], params: Any, setting: str) -> Any:
    def number(value):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{setting}: the multiplier {value!r} is not a number >= 0")
        return float(value)

    return jax.tree.map(number, rules.assign(pairs, params, setting=setting))


def _decay(config: Any, wd_mults: Any) -> optax.GradientTransformation:
    """Adds weight_decay * wd_mult * parameter to each update."""

    def update(updates, params):
        if params is None:
            raise ValueError("the optimiser needs the parameters: tx.update(grads, opt_state, params)")
        return jax.tree.map(lambda u, p, mult: u + config.weight_decay * mult * p, updates, params, wd_mults)

    return optax.stateless(update)


def _scale(mults: Any) -> optax.GradientTransformation:
    """Multiplies each leaf by its number; 0 gives exact zeros even where the leaf is not finite."""

    def update(updates, params):
        del params
        return jax.tree.map(lambda u, mult: u * mult if mult else jnp.zeros_like(u), updates, mults)

    return optax.stateless(update)
