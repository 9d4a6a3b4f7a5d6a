"""What makes a configuration one that a run can start from, beyond its keys and types."""

import functools
import math
import operator
import re
from typing import Any

from ml_collections import ConfigDict

from lape_jax.data import scenes, sources
from lape_jax.errors import UserError, nearest
from lape_jax.tasks import segment
from lape_jax.train.config import DURATIONS, OPTIONAL, base, resolve


def validate(config: ConfigDict) -> None:
    """Raises UserError, naming key, value and what would be right, unless a run could start from `config`.

    `config.model` is left to `models.create`, and paths and names of data sets to `data.open_split`.
    """
    config = resolve(config)
    for name, units in DURATIONS.items():
        key = next((f"{name}_{unit}" for unit in units if config[f"{name}_{unit}"] is not None), None)
        if key is None and name in OPTIONAL:
            continue
        if key is None:
            raise UserError(f"config has no {name} duration: set one of {', '.join(f'{name}_{u}' for u in units)}")
        may_be_zero = name in ("warmup", *OPTIONAL)
        if config[key] < 0 or (config[key] == 0 and not may_be_zero):
            raise UserError(f"config.{key} is {config[key]}: it must be {'at least' if may_be_zero else 'above'} 0")
        if key.endswith("_percent") and config[key] > 100:
            raise UserError(f"config.{key} is {config[key]}: it must be at most 100 (percent of the run)")
    for keys, right, words in _RULES:
        for key in keys:
            if not right(value := _get(config, key)):
                raise UserError(f"config.{key} is {value!r}: it must be {words}")
    for key, choices in _CHOICES.items():
        if (value := _get(config, key)) not in choices:
            raise UserError(f"config.{key}: {nearest(value, choices)}")
    data, accumulate = config.data, config.optimizer.accumulate
    for key in ("mean", "std"):
        if len(data[key]) != data.channels:
            raise UserError(
                f"config.data.{key} has {len(data[key])} values, but config.data.channels is {data.channels}"
            )
    if data.source not in (known := TASKS[config.task]):
        raise UserError(f"config.data.source: {nearest(data.source, known)} (task={config.task})")
    for source, key in (("folder", "path"), ("arrays", "path"), ("ade20k", "path"), ("tfds", "name")):
        if data.source == source and not data[key]:
            raise UserError(f"config.data.{key} is empty: data.source={source} needs it (--config.data.{key}=...)")
    augment = config.augment
    if augment.color_jitter and augment.policy not in ("none", "three_augment"):
        raise UserError(
            f"config.augment.color_jitter is {augment.color_jitter}, but the policy {augment.policy!r} leaves it out: "
            f"set it to 0"
        )
    if data.channels == 1 and (augment.policy != "none" or augment.color_jitter):
        raise UserError("config.augment.policy and color_jitter need colour images: config.data.channels is 1")
    if config.task == "segment":
        _validate_segment(config)
    if config.batch_size % accumulate:
        raise UserError(
            f"config.batch_size {config.batch_size} is no multiple of config.optimizer.accumulate {accumulate}"
        )


def _validate_segment(config: ConfigDict) -> None:
    """Raises UserError for what has no meaning where each pixel has its class."""
    if config.segment.stride > config.data.image_size:
        raise UserError(
            f"config.segment.stride is {config.segment.stride}, more than the window, config.data.image_size = "
            f"{config.data.image_size}: pixels between the windows would be left out"
        )
    if config.data.channels != 3:
        raise UserError(f"config.data.channels is {config.data.channels}: images to segment have 3")
    off = base()
    for key in _CLASSIFY_ONLY:
        if _get(config, key) != _get(off, key):
            raise UserError(f"config.{key} is {_get(config, key)!r}: it is for task=classify; leave it out")


def _get(config: ConfigDict, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), config)


def _numbers(value: tuple) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)


def _range(value: tuple) -> bool:
    return len(value) == 2 and _numbers(value) and 0 < value[0] <= value[1]


def _whole(value: tuple) -> bool:
    return all(isinstance(v, int) for v in value)


def _pairs(value: tuple) -> bool:
    return all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) and _regex(p[0]) for p in value)


def _factors(value: tuple) -> bool:
    return _pairs(value) and _numbers(tuple(p[1] for p in value)) and all(p[1] >= 0 for p in value)


def _regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


TASKS = {"classify": sources.SOURCES, "segment": scenes.SOURCES}
_CLASSIFY_ONLY = (
    *("data.resident", "data.scale", "data.ratio", "data.interpolation", "data.pad", "data.crop_ratio", "data.repeats"),
    *("augment.policy", "augment.color_jitter", "augment.erase_prob", "augment.mixup", "augment.cutmix"),
    *("loss.label_smoothing", "distill.teacher"),
)
_CHOICES = {
    "task": tuple(TASKS),
    "dtype": ("float32", "bfloat16"),
    "init.pe_norm": ("ones", "norm1"),
    "segment.mean_over": segment.MEANS,
    "data.interpolation": ("bicubic", "bilinear", "random"),
    "augment.order": ("erase_then_mix", "mix_then_erase"),
    "optimizer.name": ("adamw", "sgd"),
    "optimizer.schedule": ("step", "step_prefix", "epoch", "epoch_lag", "poly"),
}
# (keys, what holds for a right value, how to say so)
_RULES = (
    (("seed",), lambda v: 0 <= v < 2**32, "at least 0 and below 2**32"),
    (("data.max_corrupt", "data.pad"), lambda v: v >= 0, "at least 0"),
    (("data.repeats", "data.repeat_ranks"), lambda v: v >= 1, "at least 1"),
    (("augment.mixup", "augment.cutmix"), lambda v: v >= 0, "at least 0 (0 = off)"),
    (("augment.color_jitter",), lambda v: 0 <= v < 1, "at least 0 (off) and below 1"),
    (("augment.erase_prob", "augment.mix_prob", "augment.mix_switch_prob"), lambda v: 0 <= v <= 1, "from 0 to 1"),
    (("distributed.process_count",), lambda v: v >= 0, "at least 1 (0 = from the environment)"),
    (("distributed.process_id",), lambda v: v >= -1, "at least 0 (-1 = from the environment)"),
    (("distill.alpha",), lambda v: 0 <= v <= 1, "from 0 to 1"),
    (("optimizer.lr_batch",), lambda v: v >= 0, "at least 0 (0 = lr whatever the batch)"),
    (("optimizer.warmup_lr", "optimizer.min_lr", "optimizer.weight_decay"), lambda v: v >= 0, "at least 0"),
    (("optimizer.clip_norm",), lambda v: v >= 0, "at least 0 (0 = off)"),
    (("optimizer.lr", "optimizer.eps"), lambda v: v > 0, "above 0"),
    (("optimizer.power",), lambda v: v > 0, "above 0"),
    (("optimizer.beta1", "optimizer.beta2", "optimizer.momentum"), lambda v: 0 <= v < 1, "at least 0 and below 1"),
    (("loss.label_smoothing", "ema_decay"), lambda v: 0 <= v < 1, "at least 0 (off) and below 1"),
    (("batch_size", "eval_batch_size", "steps_per_dispatch", "keep_checkpoints"), lambda v: v >= 1, "at least 1"),
    (("data.image_size", "data.threads", "optimizer.accumulate"), lambda v: v >= 1, "at least 1"),
    (("data.channels",), lambda v: v in (1, 3), "1 or 3"),
    (("segment.scale",), lambda v: _range(v[::-1]) and _whole(v), "a pair (longer, shorter) of whole numbers above 0"),
    (("segment.scale_range",), _range, "a pair (smallest, largest) of numbers above 0"),
    (("segment.scales",), lambda v: v and _numbers(v) and min(v) > 0, "a tuple of numbers above 0"),
    (("segment.max_class",), lambda v: 0 < v <= 1, "above 0 and at most 1 (off)"),
    (("segment.stride",), lambda v: v >= 1, "at least 1"),
    (("data.crop_ratio",), lambda v: 0 < v <= 1, "above 0 and at most 1"),
    (("data.mean",), _numbers, "a tuple of numbers"),
    (("data.std",), lambda v: _numbers(v) and all(s > 0 for s in v), "a tuple of numbers above 0"),
    (("data.scale",), lambda v: _range(v) and v[1] <= 1, "a pair (smallest, largest) in (0, 1]"),
    (("data.ratio",), _range, "a pair (smallest, largest) of numbers above 0"),
    (("mesh.data", "mesh.fsdp", "mesh.tensor"), lambda v: v == -1 or v >= 1, "at least 1, or -1 = the other devices"),
    (("optimizer.lr_mults", "optimizer.wd_mults"), _factors, "a tuple of (regex, factor of at least 0) pairs"),
    (("sharding",), _pairs, "a tuple of (regex, strategy) pairs"),
)
