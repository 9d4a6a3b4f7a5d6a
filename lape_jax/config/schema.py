"""The configuration of a run: its schema with defaults, and how it is read from files, arguments and JSON.

A config file is a Python file with `get_config(arg: str = "") -> ConfigDict`. It starts from `base()`, whose keys are
locked, so a misspelt key stops at its line:

    from lape_jax.train.config import base, parse_arg

    def get_config(arg=""):
        arg = parse_arg(arg, join="lape", debug=False)
        config = base()
        config.model.join = arg.join
        config.total_epochs = 1.0 if arg.debug else 60.0
        ...
        return config
"""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lape_jax.errors import UserError, nearest

# A duration is given in exactly one of these units, as e.g. `eval_epochs`. A percentage is of the total, 0 to 100.
DURATIONS = {
    "total": ("steps", "epochs", "examples"),
    "warmup": ("steps", "epochs", "examples", "percent"),
    "log": ("steps", "epochs", "examples", "percent"),
    "eval": ("steps", "epochs", "examples", "percent"),
    "checkpoint": ("steps", "epochs", "examples", "percent"),
    "cooldown": ("steps", "epochs", "examples", "percent"),
    "mix": ("steps", "epochs", "examples", "percent"),
}
OPTIONAL = ("cooldown", "mix")  # durations that a config may leave out
_UNIT_TYPES = {"steps": int, "epochs": float, "examples": int, "percent": float}
_WORDS = {bool: "true or false", int: "an int", float: "a finite number", str: "a string", tuple: "a tuple"}
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def base() -> ConfigDict:
    """Every key with its default and type, locked; only `model` takes new keys (checked by `models.create`).

    Durations have no default: a config sets one unit of each of `total`, `warmup`, `log`, `eval`, `checkpoint`, and may
    set `cooldown` (the end of the run, at min_lr, after the schedule) and `mix` (how long mixup and CutMix are on).
    """
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the data order, augmentation and dropout
    config.task = "classify"  # or "segment": a class for each pixel
    config.dtype = "float32"  # of the computation, or "bfloat16"; parameters are float32
    config.init = init = ConfigDict()  # the weights to start from, if not fresh ones
    init.weights = ""  # a file, or the workdir of a run; what fits is loaded, and all is said
    init.pe_norm = "norm1"  # what PE norms start as where those weights have none: "ones", or the block's "norm1"
    config.model = ConfigDict({"name": "deit_ti"})  # name, and any field of that model: models.create(**config.model)

    config.data = data = ConfigDict()
    data.source = "digits"  # digits | folder | arrays | tfds; to segment: digits | ade20k | folder | tfds
    # folder: the directory that holds train/ and val/ (to segment: images/, masks/ and classes.txt); arrays: train.npz
    # and val.npz; tfds: its data_dir; ade20k: images/ and annotations/.
    data.path = ""
    data.name = ""  # tfds: the data set's name
    data.train_split = "train"
    data.val_split = "val"
    data.image_size = 224  # to segment: side of the training crops and of the evaluation's windows
    data.channels = 3
    data.mean = (0.485, 0.456, 0.406)  # of images scaled to [0, 1]: x -> (x - mean) / std
    data.std = (0.229, 0.224, 0.225)
    data.resident = False  # keep the whole set on the device (small sets)
    data.scale = (0.08, 1.0)  # random-resized crop: range of its area, as a fraction of the image's
    data.ratio = (3 / 4, 4 / 3)  # ... and of its aspect ratio
    data.interpolation = "bicubic"  # of that crop and of the policy's warps: bicubic | bilinear | random
    data.pad = 0  # pixels: above 0, a crop of the padded image takes the place of the random-resized crop
    data.crop_ratio = 0.875  # evaluation: centre crop side / resized shorter side
    data.repeats = 1  # copies of an image in an epoch: 3 = DeiT's repeated augmentation
    data.repeat_ranks = 4  # ... whose copies fall to so many emulated processes
    data.threads = 8
    data.max_corrupt = 10  # distinct corrupt images skipped in training before the run stops

    config.augment = augment = ConfigDict()  # on the device, after the crop
    augment.flip = False  # horizontal, with probability 1/2
    augment.policy = "none"  # none | rand-m9-mstd0.5-inc1 (and its like) | cifar10_autoaugment | three_augment
    augment.color_jitter = 0.0  # brightness, contrast and saturation by factors in 1 +- this; 0 = off
    augment.erase_prob = 0.0  # of erasing a random box of an image
    augment.mixup = 0.0  # lambda ~ Beta(mixup, mixup); 0 = off
    augment.cutmix = 0.0  # the same for CutMix
    augment.mix_prob = 1.0  # of mixing a batch
    augment.mix_switch_prob = 0.5  # of CutMix where both are on
    augment.order = "erase_then_mix"  # or "mix_then_erase", with mixing in 8 bits

    config.segment = segment = ConfigDict()  # images and their maps of labels
    segment.scale = (2048, 512)  # pixels: an image is resized until its longer and shorter side fit in
    segment.scale_range = (0.5, 2.0)  # training: both times a factor from this range
    segment.max_class = 0.75  # training crops are drawn anew (10 times) while one class covers more than this
    segment.distort = True  # brightness, contrast, saturation and hue, each with probability 1/2
    segment.mean_over = "valid"  # the loss is the mean over pixels with a label, or over "all", others counting 0
    segment.stride = 480  # evaluation: pixels from one window to the next
    segment.scales = (1.0,)  # ... factors of `scale`, whose probabilities are averaged
    segment.flip = False  # ... each also mirrored

    config.batch_size = 128  # of one optimizer step, over all devices
    config.eval_batch_size = 256  # images, or windows of images to segment
    config.steps_per_dispatch = 100  # steps that one call of a resident run makes on the device

    for name, units in DURATIONS.items():
        for unit in units:
            config[f"{name}_{unit}"] = placeholder(_UNIT_TYPES[unit])

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw | sgd
    # Linear warm-up into a cosine, where the rate changes every "step" (or "step_prefix": the cosine begins after the
    # warm-up, and not under it), every "epoch", or there one late: "epoch_lag". Or "poly", by step.
    optimizer.schedule = "step"
    optimizer.power = 0.9  # poly: exponent
    optimizer.lr = 1e-3  # at the peak; for a batch of `lr_batch` images if that is set, in proportion for others
    optimizer.lr_batch = 0
    optimizer.warmup_lr = 1e-6
    optimizer.min_lr = 1e-5
    optimizer.weight_decay = 0.05
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8
    optimizer.momentum = 0.9  # sgd
    optimizer.nesterov = False  # sgd
    optimizer.clip_norm = 0.0  # of the global gradient norm; 0 = off
    optimizer.accumulate = 1  # micro-batches per step
    optimizer.lr_mults = ((".*", 1.0),)  # (regex of the parameter's path, factor): first match wins; 0 = frozen
    optimizer.wd_mults = ()  # the same for weight decay; () = the rule of the published recipe

    config.loss = ConfigDict({"label_smoothing": 0.0})
    config.distill = distill = ConfigDict()  # hard distillation, for models with a distillation token
    distill.teacher = ""  # a file of weights, the workdir of a run, or "labels" to do without
    distill.model = ""  # name of the teacher's model, for a file of weights
    distill.alpha = 0.5  # weight of the teacher's labels in the loss
    config.ema_decay = 0.0  # of a running mean of the weights, evaluated beside them; 0 = off
    config.distributed = distributed = ConfigDict()  # over several processes; unset = from the environment
    distributed.coordinator = ""  # host:port of process 0
    distributed.process_id = -1
    distributed.process_count = 0
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # devices on each axis, -1 = the rest
    config.sharding = ((".*", "replicate"),)  # (regex of the parameter's path, strategy): first match wins
    config.report = True  # at the end of training: report.md and figures/ in the workdir
    config.keep_checkpoints = 3  # the newest so many, and the best
    config.lock()
    config.model.unlock()
    return config


def parse_arg(arg: str | None, **defaults: bool | int | float | str) -> ConfigDict:
    """Reads the `a=1,b,c=x` of `--config=FILE:a=1,b,c=x`; each value gets its default's type, a bare bool is true.

    >>> parse_arg("join=default,debug", join="lape", debug=False, seed=0).to_dict()
    {'debug': True, 'join': 'default', 'seed': 0}

    Raises UserError for a name that is not among `defaults`, a value of another type, or a name given twice.
    """
    values = dict(defaults)
    seen = set()
    for item in filter(None, (item.strip() for item in (arg or "").split(","))):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise UserError(f"config argument {item!r}: {nearest(name, sorted(defaults))}")
        if name in seen:
            raise UserError(f"config argument {name!r} is given twice")
        kind = type(defaults[name])
        values[name] = _parse(text if equals or kind is not bool else "true", kind, f"config argument {name!r}")
        seen.add(name)
    return ConfigDict(values)


def resolve(values: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """`base()` with `values` put in: complete, typed and locked, whatever `values` was.

    Raises UserError for an unknown key, a value of the wrong type, or a duration given in two units.
    """
    config = base()
    _merge(config, values, "")
    for name, units in DURATIONS.items():
        given = [f"{name}_{unit}" for unit in units if config[f"{name}_{unit}"] is not None]
        if len(given) > 1:
            raise UserError(f"config sets {' and '.join(given)}, but a duration takes one unit: remove all but one")
    return config


def override(config: ConfigDict, items: Iterable[tuple[str, str]]) -> None:
    """Sets `config`'s dotted keys to the values that the texts spell, in place: the `--config.key=text` options.

    A value is read as its key's type. `model.*` takes any key, read as a Python literal or else as a string. A
    duration replaces the one that the config gave in another unit. Raises UserError for an unknown key, a text that
    is not of the key's type, or two units of one duration.
    """
    chosen: dict[str, str] = {}
    for key, text in items:
        parent, leaf = _locate(config, key)
        if parent is config.model:
            if leaf in parent:
                del parent[leaf]  # its type may change: image_size is an int or a pair
            parent[leaf] = text if leaf == "name" else literal(text, f"config.{key}")
            continue
        parent[leaf] = _parse(text, parent.get_type(leaf), f"config.{key}")
        name, _, unit = key.rpartition("_")
        if unit in DURATIONS.get(name, ()):
            if chosen.setdefault(name, key) != key:
                raise UserError(f"--config.{chosen[name]} and --config.{key} are the same duration: give one of them")
            for other in DURATIONS[name]:
                if other != unit:
                    config[f"{name}_{other}"] = None


def to_json(config: ConfigDict) -> str:
    """`config` as JSON text with sorted keys; tuples become lists, which `from_json` turns back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(path: str | Path) -> ConfigDict:
    """The config that `to_json` wrote to the file `path`; keys that it lacks get their defaults."""
    try:
        values = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"no config at {str(path)!r}: is it the workdir of a run?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a config: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} does not hold a config")
    try:
        return resolve(values)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from None


def unknown_key(key: str) -> UserError:
    """The error for a dotted key that the schema lacks, with the one that was probably meant."""
    paths = _paths(base())
    leaves = {path.rpartition(".")[2]: path for path in paths}
    leaf = key.rpartition(".")[2]
    close = [leaves[leaf]] if leaf in leaves else difflib.get_close_matches(key, paths, n=1, cutoff=0.6)
    close = close or [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    if close:
        return UserError(f"unknown key config.{key} (did you mean config.{close[0]}?)")
    return UserError(f"unknown key config.{key}: the keys are {', '.join(path for path in paths if '.' not in path)}")


def _paths(config: ConfigDict, prefix: str = "") -> list[str]:
    paths = []
    for key, value in config.items():
        paths.append(prefix + key)
        if isinstance(value, ConfigDict):
            paths += _paths(value, f"{prefix}{key}.")
    return paths


def _locate(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The group that holds the dotted `key`, and the last part of it; UserError unless it is the key of one value."""
    *groups, leaf = key.split(".")
    parent = config
    for group in groups:
        if not isinstance(parent.get(group), ConfigDict):
            raise unknown_key(key)
        parent = parent[group]
    if leaf not in parent and not (parent is config.model and leaf):
        raise unknown_key(key)
    if isinstance(parent.get(leaf), ConfigDict):
        raise UserError(
            f"config.{key} is a group of keys: set one of them, such as config.{key}.{next(iter(parent[leaf]))}"
        )
    return parent, leaf


def _merge(config: ConfigDict, values: Mapping[str, Any] | ConfigDict, prefix: str) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in config and config.is_locked:
            raise unknown_key(path)
        group = isinstance(config.get(key), ConfigDict)
        if group != isinstance(value, Mapping | ConfigDict):
            raise UserError(f"config.{path} is {value!r}: it must be {'a group of keys' if group else 'one value'}")
        if group:
            _merge(config[key], value, f"{path}.")
        elif config.is_locked:
            config[key] = None if value is None and config[key] is None else _cast(value, config.get_type(key), path)
        else:
            config[key] = _plain(value, f"config.{path}")


def _plain(value: Any, name: str) -> Any:
    """`value` with tuples for its lists, so that a config read from JSON equals the one that was written."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item, name) for item in value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UserError(f"{name} has {value!r}: it must be a finite number, a string, a bool, None or a tuple of these")


def _cast(value: Any, kind: type, path: str) -> Any:
    """`value` as `kind` where nothing is lost, else a UserError."""
    if kind is tuple and isinstance(value, list | tuple):
        return _plain(value, f"config.{path}")
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise UserError(f"config.{path} is {value!r}: it must be {_WORDS[kind]}")


def _parse(text: str, kind: type, name: str) -> Any:
    """The value of type `kind` that `text` spells on a command line."""
    try:
        if kind is bool:
            return _BOOLS[text.lower()]
        if kind is tuple:
            value = ast.literal_eval(text)
            return _plain({list: value, tuple: value}[type(value)], name)
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except UserError:
        raise
    except (KeyError, ValueError, SyntaxError, TypeError):
        words = "a tuple such as '(0.5, 0.5)'" if kind is tuple else _WORDS[kind]
        raise UserError(f"{name} is {text!r}: it must be {words}") from None
    return value


def literal(text: str, name: str) -> Any:
    """The Python literal that `text` is, or else `text` itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    return _plain(value, name)
