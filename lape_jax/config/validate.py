"""What makes the keys of `lape_jax.config.schema` ones that a run can start from, beyond their types."""

from ml_collections import ConfigDict

from lape_jax.config import rules
from lape_jax.config.schema import DURATIONS, OPTIONAL
from lape_jax.data import exif
from lape_jax.errors import UserError


def validate(config: ConfigDict) -> None:
    """Raises UserError, naming key, value and what would be right, unless a run could start from `config`.

    Its task is not looked at, `config.model` is left to `models.create`, and paths and names of data sets to whoever
    opens them.
    """
    for name in DURATIONS:
        _check_duration(config, name)
    rules.check(config, _RULES, _CHOICES)
    if config.optimizer.schedule == "multistep" and not config.optimizer.milestones:
        raise UserError(
            "config.optimizer.schedule is 'multistep', and config.optimizer.milestones is empty: give the shares of "
            "the run after which the rate falls, as (0.75, 0.9)"
        )
    data, accumulate = config.data, config.optimizer.accumulate
    for key in ("mean", "std"):
        if len(data[key]) != data.channels:
            raise UserError(
                f"config.data.{key} has {len(data[key])} values, but config.data.channels is {data.channels}: "
                f"give one for each channel, or change the channels"
            )
    if config.batch_size % accumulate:
        raise UserError(
            f"config.batch_size {config.batch_size} is no multiple of config.optimizer.accumulate {accumulate}, which "
            f"cuts it into equal parts: change one of them"
        )


def _check_duration(config: ConfigDict, name: str) -> None:
    units = DURATIONS[name]
    key = next((f"{name}_{unit}" for unit in units if config[f"{name}_{unit}"] is not None), None)
    if key is None and name in OPTIONAL:
        return
    if key is None:
        raise UserError(f"config has no {name} duration: set one of {', '.join(f'config.{name}_{u}' for u in units)}")
    may_be_zero = name in ("warmup", *OPTIONAL)
    if config[key] < 0 or (config[key] == 0 and not may_be_zero):
        raise UserError(f"config.{key} is {config[key]}: it must be {'at least' if may_be_zero else 'above'} 0")
    if key.endswith("_percent") and config[key] > 100:
        raise UserError(f"config.{key} is {config[key]}: it must be at most 100 (percent of the run)")


_CHOICES = {
    "data.match": ("name", "order"),
    "dtype": ("float32", "bfloat16"),
    "data.orientation": exif.CHOICES,
    "init.pe_norm": ("ones", "norm1"),
    "optimizer.name": ("adamw", "sgd"),
    "optimizer.schedule": ("step", "step_prefix", "epoch", "epoch_lag", "poly", "poly_warm", "multistep"),
}
_RULES: tuple[rules.Rule, ...] = (
    (("seed",), lambda v: 0 <= v < 2**32, "at least 0 and below 2**32"),
    (("data.max_corrupt",), lambda v: v >= 0, "at least 0"),
    (("data.repeats", "data.repeat_ranks"), lambda v: v >= 1, "at least 1"),
    (("distributed.process_count",), lambda v: v >= 0, "at least 1 (0 = from the environment)"),
    (("distributed.process_id",), lambda v: v >= -1, "at least 0 (-1 = from the environment)"),
    (("optimizer.lr_batch",), lambda v: v >= 0, "at least 0 (0 = lr whatever the batch)"),
    (("optimizer.warmup_lr", "optimizer.min_lr", "optimizer.weight_decay"), lambda v: v >= 0, "at least 0"),
    (("optimizer.clip_norm",), lambda v: v >= 0, "at least 0 (0 = off)"),
    (("optimizer.lr", "optimizer.eps"), lambda v: v > 0, "above 0"),
    (("optimizer.power",), lambda v: v > 0, "above 0"),
    (("optimizer.milestones",), rules.rising_shares, "a tuple of shares of the run that rise between 0 and 1"),
    (("optimizer.layer_decay",), lambda v: 0 < v <= 1, "above 0 and at most 1 (1 = off)"),
    (("optimizer.beta1", "optimizer.beta2", "optimizer.momentum"), lambda v: 0 <= v < 1, "at least 0 and below 1"),
    (("ema_decay",), lambda v: 0 <= v < 1, "at least 0 (off) and below 1"),
    (("batch_size", "eval_batch_size", "keep_checkpoints"), lambda v: v >= 1, "at least 1"),
    (("steps_per_dispatch",), lambda v: 1 <= v <= 10_000, "from 1 to 10000"),
    (("data.image_size", "data.threads", "data.prefetch", "optimizer.accumulate"), lambda v: v >= 1, "at least 1"),
    (("data.channels",), lambda v: v in (1, 3), "1 or 3"),
    (("data.mean",), rules.numbers, "a tuple of numbers"),
    (("data.std",), lambda v: rules.numbers(v) and all(s > 0 for s in v), "a tuple of numbers above 0"),
    (("mesh.data", "mesh.fsdp", "mesh.tensor"), lambda v: v == -1 or v >= 1, "at least 1, or -1 = the other devices"),
    (
        ("optimizer.lr_mults", "optimizer.wd_mults"),
        rules.factors,
        "a tuple of (regex, factor of at least 0, or a tuple of one for each layer) pairs, as (('.*', 1.0),)",
    ),
    (("sharding",), rules.pairs, "a tuple of (regex, strategy) pairs, as (('.*', 'fsdp'),)"),
)
