"""The optimisers, AdamW and SGD with momentum, and schedules; multipliers are those of `lape_jax.train.groups`.

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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lape_jax.errors import UserError
from lape_jax.train import groups


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
        config.schedule = "poly_warm":    as "poly", but for its warm-up
        config.schedule = "multistep":    t = s, and max(lr / 10^k, min_lr) in place of the cosine, where k counts the
                                          steps round(m T), m in config.milestones, that t has reached
    The warm-up of the last two is mmcv's, a factor to what the rate would be without a warm-up, r(t):

        t < W:       r(t) (warmup_lr / lr + (1 - warmup_lr / lr) t / W)
    It begins with warmup_lr, too, and there is no jump at W.

    "step_prefix" is Swin's; "epoch" is what scripts do that call timm's scheduler with e + 1 after epoch e (T2T-ViT,
    Compact Transformers), "epoch_lag" those that call it with e (DeiT, LaPE, CeiT). Source: timm 0.3.4
    `CosineLRScheduler`. "poly" is that of rstrudel/segmenter and MMSegmentation; the last two are those of mmcv 1.4,
    `runner/hooks/lr_updater.py`, for UperNet and Mask R-CNN.

    Args:
        config: with schedule, power, milestones, lr, lr_batch, warmup_lr and min_lr.
        total_steps: updates in the whole run, T + cooldown_steps.
        warmup_steps: W.
        batch_size: images of an update; lr in the formulas is `peak_rate(config, batch_size)`.
        cooldown_steps: updates at the end of the run that are made at min_lr, beyond the schedule.
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

    def after_warmup(step):
        left = 1.0 * jnp.maximum(period - step, 0)
        if config.schedule == "multistep":
            rate = lr
            for count, milestone in enumerate(config.milestones, 1):
                rate = jnp.where(step < round(milestone * period), rate, max(lr / 10**count, min_lr))
            return jnp.where(left > 0, rate, min_lr)
        if config.schedule.startswith("poly"):
            share = (left / period) ** config.power
        else:
            # (1 + cos(pi t/T)) / 2 = sin^2(pi (T - t) / 2T), which is also precise near the end of the run in float32
            share = jnp.sin(0.5 * math.pi * left / max(cosine_steps, 1)) ** 2
        return min_lr + (lr - min_lr) * share

    def learning_rate(step):
        if config.schedule.startswith("epoch"):
            step = jnp.maximum(step // steps_per_epoch - lag, 0) * steps_per_epoch
        rate = after_warmup(step)
        if config.schedule in ("poly_warm", "multistep"):
            warmup = rate * (warmup_lr / lr + step * (1 - warmup_lr / lr) / max(warmup_steps, 1))
        else:
            warmup = warmup_lr + step * (lr - warmup_lr) / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warmup, rate)

    return learning_rate


def make(
    config: Any, params: Any, learning_rate: Callable, no_weight_decay: Sequence[str]
) -> optax.GradientTransformation:
    """The optimiser of the module docstring, as one optax transformation.

    A parameter, or a layer of it, with lr multiplier 0 is frozen: its gradient does not count in the clipping norm and
    it never moves.
    The number of updates is counted inside, so the state needs no step from outside. Gradient accumulation is the
    training step's business: one update per call here.

    Args:
        config: with name, weight_decay, beta1, beta2, eps, momentum, nesterov, clip_norm (0: off), and what
            `groups.multipliers` takes.
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).
        learning_rate: by update, from `schedule`.
        no_weight_decay: what the model declares, see `lape_jax.models.base.Classifier`.

    Raises:
        UserError: as `groups.multipliers`.
    """
    lr_mults, wd_mults = groups.multipliers(config, params, no_weight_decay)
    decay = _decay(config, wd_mults)
    if config.name == "sgd":
        rule = (decay, optax.trace(config.momentum, nesterov=config.nesterov))
    else:
        rule = (optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps), decay)
    # Always the same pieces, so that a run can be resumed with, for example, another clip_norm.
    return optax.chain(
        _scale(jax.tree.map(lambda mult: 1.0 * (mult != 0), lr_mults)),
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *rule,
        optax.scale_by_learning_rate(learning_rate),
        _scale(lr_mults),
    )


def describe(config: Any, params: Any, no_weight_decay: Sequence[str], batch_size: int) -> list[str]:
    """Lists, for the log, the learning rate and each group of parameters with equal multipliers."""
    peak = f"{config.name}, learning rate {peak_rate(config, batch_size):g}"
    if config.lr_batch:
        peak += f" = {config.lr:g} x batch {batch_size} / {config.lr_batch}"
    decay = f", layer decay {config.layer_decay:g}" if config.layer_decay != 1 else ""
    return [f"{peak}, {_course(config)}{decay}", *groups.describe(config, params, no_weight_decay)]


def _course(config: Any) -> str:
    if config.schedule == "multistep":
        return f"x 0.1 after {' and '.join(f'{100 * share:.4g} %' for share in config.milestones)} of the run"
    if config.schedule in ("poly", "poly_warm"):
        under = ", also under its warm-up" if config.schedule == "poly_warm" else ""
        return f"falls with power {config.power:g}{under}"
    late = ", one late" if config.schedule.endswith("lag") else ""
    return f"changes every {config.schedule.partition('_')[0]}{late}"


def _decay(config: Any, wd_mults: Any) -> optax.GradientTransformation:
    """Adds weight_decay * wd_mult * parameter to each update."""

    def update(updates, params):
        if params is None:
            raise ValueError("the optimiser needs the parameters: tx.update(grads, opt_state, params)")

        def add(u, p, mult):
            return u + _along_layers(config.weight_decay * mult, p) * p

        return jax.tree.map(add, updates, params, wd_mults)

    return optax.stateless(update)


def _scale(mults: Any) -> optax.GradientTransformation:
    """Multiplies each leaf by its number, or its layers by theirs; 0 gives exact zeros even of what is not finite."""

    def scale(u, mult):
        if not np.any(mult):
            return jnp.zeros_like(u)
        factor = _along_layers(mult, u)
        return u * factor if np.all(mult) else jnp.where(factor != 0, u * factor, 0)

    def update(updates, params):
        del params
        return jax.tree.map(scale, updates, mults)

    return optax.stateless(update)


def _along_layers(mult: Any, leaf: Float[Array, "..."]) -> Any:
    """A multiplier so that it multiplies `leaf`: a number as it is, a vector along the first axis."""
    return np.reshape(np.asarray(mult, leaf.dtype), (-1, *[1] * (leaf.ndim - 1))) if np.ndim(mult) else mult
