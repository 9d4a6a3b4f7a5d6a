"""The whole config of a run: the keys that all tasks share, and those of each task, whichever the run's is."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lape_jax.config import reading, rules
from lape_jax.config import validate as common
from lape_jax.config.schema import HOW
from lape_jax.config.schema import common as common_keys
from lape_jax.errors import UserError, nearest
from lape_jax.models import VARIANTS
from lape_jax.tasks import TASKS
from lape_jax.tasks.task import Task


def base() -> ConfigDict:
    """Every key with its default and type, locked; only `model` takes new keys (checked by `models.create`)."""
    config = common_keys()
    for task in TASKS.values():
        task.add_keys(config)
    config.lock()
    config.model.unlock()
    return config


def resolve(values: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """`base()` with `values` put in: complete, typed and locked, whatever `values` was.

    Raises UserError for an unknown key, a value of the wrong type, or a duration given in two units.
    """
    return reading.resolve(values, base())


def from_json(path: str | Path) -> ConfigDict:
    """The config that a run wrote to the file `path`; keys that it lacks get their defaults.

    A run from before its devices decided how its model runs goes on as it was.
    """
    config = reading.from_json(path, base())
    for key in sorted(HOW.keys() - (reading.given(path) or {}).keys()):
        adapted = key == "model.attention" and "vit_adapter" in config.model.name
        config.model[key.partition(".")[2]] = "blocks" if adapted else HOW[key]
    return config


def override(config: ConfigDict, items: Iterable[tuple[str, str]]) -> None:
    """`lape_jax.config.reading.override`."""
    reading.override(config, items)


def validate(config: ConfigDict) -> None:
    """Raises UserError, naming key, value and what would be right, unless a run could start from `config`.

    `config.model` is left to `models.create`, and paths and names of data sets to the task's `open_split`.
    """
    config = resolve(config)
    common.validate(config)
    rules.check(config, (), {"task": tuple(TASKS)})
    for task in TASKS.values():
        rules.check(config, task.rules, task.choices)
    task, data = TASKS[config.task], config.data
    if data.source not in task.sources:
        raise UserError(f"config.data.source: {nearest(data.source, task.sources)} (task={config.task})")
    key = task.sources[data.source]
    if key and not data[key]:
        raise UserError(f"config.data.{key} is empty: data.source={data.source} needs it (--config.data.{key}=...)")
    if config.model.name in VARIANTS:
        task.check_answers(config, VARIANTS[config.model.name][0])  # else each key that it needs would be refused
    _check_foreign(config)
    task.validate(config)


def _check_foreign(config: ConfigDict) -> None:
    """Raises UserError for a key that was set, and means nothing to the task."""
    task, default, own = TASKS[config.task], base(), _keys_of(TASKS[config.task])
    words = dict.fromkeys(task.ignores, f"task={task.name} has no use for it")
    for other in TASKS.values():
        words |= dict.fromkeys(sorted(_keys_of(other) - own), f"it is for task={other.name}")
    for key, why in words.items():
        if (value := rules.get(config, key)) != rules.get(default, key):
            raise UserError(f"config.{key} is {value!r}: {why}; leave it out")


def _keys_of(task: Task) -> set[str]:
    """The dotted keys that a task adds."""
    config = common_keys()
    before = set(reading.flat(config))
    task.add_keys(config)
    return set(reading.flat(config)) - before
