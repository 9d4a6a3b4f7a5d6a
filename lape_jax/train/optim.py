"""The optimisers, AdamW and SGD with momentum; schedules; and multipliers by (regex, value) rules.

For parameter p with gradient g, at update t = 0, 1, 2, ... with learning rate lr(t), AdamW:
    g  <- g * min(1, clip_norm / ||all gradients||)                    only if clip_norm > 0
    m  <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
    u   = m / (1 - beta1^(t+1)) / (sqrt(v / (1 - beta2^(t+1))) + eps)
    p  <- p - lr(t) * lr_mult(p) * (u + weight_decay * wd_mult(p) * p)
This is `torch.optim.AdamW` with one parameter group per pair of multipliers (Loshchilov & Hutter, arXiv:1711.05101).
SGD, after the same clipping, is `torch.optim.SGD`, whose decay is part of the gradient:
    g  <- g + weight_decay * wd_mult(p) * p;  m <- momentum m + g
    p  <- p - lr(t) * lr_mult(p) * m                                   (g + momentum m for m, if nesterov)
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
from lape_jax.models import rules

LR_MULTS = ((r".*", 1.0),)


def default_wd_mults(params: Any) -> tuple[tuple[str, float], ...]:
    """Which parameters decay in timm's and the official LaPE's training: the rules behind `optimizer.wd_mults = ()`.

    No decay for every bias, every normalisation scale (norm1, norm2, pe_norm of any kind, the final norm) and every
    LayerScale gamma, that is for all tensors that are 1-D in one block, and for `cls_token` and `pos_embed`.
    None either for what `pe="peg"` adds, kernels included, as in Twins' `CPVTV2`; and of models with big_vision's names
    only the kernels decay, as in its configs.
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
        (r"peg_\d+/.*", 0.0),
        (r"cls|pos_embedding|MAPHead_0/probe", 0.0),
        (r".*", 1.0),
    )


def peak_rate(config: Any, batch_size: int) -> float:
    """lr * batch_size / lr_batch (the linear scaling rule, Goyal et al., arXiv:1706.02677), or lr if lr_batch is 0.

    min_lr and warmup_lr do not follow the batch, as in DeiT's training.
    """
    return config.lr * batch_size / config.lr_batch if config.lr_batch else config.lr


def schedule(
    config: Any,
    total_steps: int,
    warmup_steps: int,
    *,
    batch_size: int = 1,
    cooldown_steps: int = 0,
    steps_per_epoch: int = 1,
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Learning rate by update: linear warm-up into a cosine that is counted from 0 (warm-up *not* prefixed).

        t < W:       warmup_lr + t (lr - warmup_lr) / W
        W <= t < T:  min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2
        t >= T:      min_lr
    so lr(W) is already slightly below the peak. What t is for update s, in an epoch of E updates (e = floor(s / E)):

        config.schedule = "step":         t = s
        config.schedule = "step_prefix":  t = s, and the cosine is counted from W: cos(pi (t - W) / (T - W))
        config.schedule = "epoch":        t = e E
        config.schedule = "epoch_lag":    t = max(e - 1, 0) E
        config.schedule = "poly":         t = s, and min_lr + (lr - min_lr) (1 - t / T)^power in place of the cosine
    The second is Swin's; the third is what scripts do that call timm's scheduler with e + 1 after epoch e (T2T-ViT,
    Compact Transformers), the last those that call it with e (DeiT, LaPE, CeiT). Source: timm 0.3.4
    `CosineLRScheduler`. "poly" is that of
    rstrudel/segmenter and MMSegmentation.

    Args:
        config: with schedule, power, lr, lr_batch, warmup_lr and min_lr.
        total_steps: updates in the whole run, T + cooldown_steps.
        warmup_steps: W.
        batch_size: images of an update; lr in the formulas is `peak_rate(config, batch_size)`.
        cooldown_steps: updates at the end of the run that are made at min_lr, beyond the cosine.
        steps_per_epoch: E.

    Returns:
        A function of the update count, usable inside jit and for logging.

    Raises:
        UserError: T is not positive, W is not within 0..T, or the peak lies below min_lr.
    """
    period = total_steps - cooldown_steps
    if period < 1:
        raise UserError(
            f"the schedule needs at least 1 training step, not {period}: {total_steps} in all (config.total_*) less "
            f"{cooldown_steps} of cool-down (config.cooldown_*): make that shorter"
        )
    if not 0 <= warmup_steps <= period:
        raise UserError(f"warm-up of {warmup_steps} steps does not fit into {period} training steps: make it shorter")
    lr, warmup_lr, min_lr = peak_rate(config, batch_size), config.warmup_lr, config.min_lr
    if min_lr > lr:
        origin = f"config.optimizer.lr {config.lr:g}"
        if config.lr_batch:
            origin += f" for {config.lr_batch} images, and in proportion for config.batch_size {batch_size}"
        raise UserError(
            f"config.optimizer.min_lr {min_lr:g} is above the peak of the learning rate, {lr:g} ({origin}): lower "
            f"min_lr, or raise lr"
        )
    lag = 1 if config.schedule == "epoch_lag" else 0
    cosine_steps = period - (warmup_steps if config.schedule == "step_prefix" else 0)

    def learning_rate(step):
        if config.schedule.startswith("epoch"):
            step = jnp.maximum(step // steps_per_epoch - lag, 0) * steps_per_epoch
        left = 1.0 * jnp.maximum(period - step, 0)
        if config.schedule == "poly":
            share = (left / period) ** config.power
        else:
            # (1 + cos(pi t/T)) / 2 = sin^2(pi (T - t) / 2T), which is also precise near the end of the run in float32
            share = jnp.sin(0.5 * math.pi * left / max(cosine_steps, 1)) ** 2
        after_warmup = min_lr + (lr - min_lr) * share
        warmup = warmup_lr + step * (lr - warmup_lr) / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warmup, after_warmup)

    return learning_rate


def make(config: Any, params: Any, learning_rate: Callable) -> optax.GradientTransformation:
    """The optimiser of the module docstring, as one optax transformation.

    A parameter with lr multiplier 0 is frozen: its gradient does not count in the clipping norm and it never moves.
    The number of updates is counted inside, so the state needs no step from outside. Gradient accumulation is the
    training step's business: one update per call here.

    Args:
        config: with name, weight_decay, beta1, beta2, eps, momentum, nesterov, clip_norm (0: off), and the ordered
            (regex, value) lists lr_mults and wd_mults (empty: `LR_MULTS`, `default_wd_mults`).
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).
        learning_rate: by update, from `schedule`.

    Raises:
        UserError: a parameter that no rule covers, or a bad rule or multiplier.
    """
    lr_mults, wd_mults = multipliers(config, params)
    decay = _decay(config, wd_mults)
    if config.name == "sgd":
        rule = (decay, optax.trace(config.momentum, nesterov=config.nesterov))
    else:
        rule = (optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps), decay)
    # Always the same pieces, so that a run can be resumed with, for example, another clip_norm.
    return optax.chain(
        _scale(jax.tree.map(lambda mult: float(mult != 0), lr_mults)),
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *rule,
        optax.scale_by_learning_rate(learning_rate),
        _scale(lr_mults),
    )


def multipliers(config: Any, params: Any) -> tuple[Any, Any]:
    """The trees (lr multiplier, weight-decay multiplier) of floats, one per parameter."""
    lr = _numbers(config.lr_mults or LR_MULTS, params, "config.optimizer.lr_mults")
    wd = _numbers(config.wd_mults or default_wd_mults(params), params, "config.optimizer.wd_mults")
    return lr, wd


def describe(config: Any, params: Any, batch_size: int) -> list[str]:
    """For the log: the peak of the learning rate, and each group of parameters with equal multipliers."""
    peak = f"{config.name}, learning rate {peak_rate(config, batch_size):g}"
    if config.lr_batch:
        peak += f" = {config.lr:g} x batch {batch_size} / {config.lr_batch}"
    lr_mults, wd_mults = multipliers(config, params)
    tensors, numbers = Counter(), Counter()
    groups = zip(jax.tree.leaves(lr_mults), jax.tree.leaves(wd_mults), jax.tree.leaves(params), strict=True)
    for lr, wd, leaf in groups:
        group = (lr, wd if lr else 0.0)
        tensors[group] += 1
        numbers[group] += math.prod(leaf.shape)
    if config.schedule == "poly":
        peak += f", falls with power {config.power:g}"
    else:
        peak += f", changes every {config.schedule.partition('_')[0]}{', one late' * config.schedule.endswith('lag')}"
    return [peak] + [
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
