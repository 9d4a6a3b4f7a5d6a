"""How a config is read: from the argument of its file, from options of the command line, from JSON; and written."""

import ast
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lape_jax.config.schema import DURATIONS
from lape_jax.errors import UserError, listed, nearest

_WORDS = {bool: "true or false", int: "an int", float: "a finite number", str: "a string", tuple: "a tuple"}
# NAME="text", NAME='text' or NAME=text, up to a comma without a backslash before it, or the end.
_ITEM = re.compile(r"""\s*(?:(?P<name>[^=,]*=)(?P<quoted>"[^"]*"|'[^']*')\s*|(?P<text>(?:\\,|[^,])*))(?:,|$)""")
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def parse_arg(arg: str | None, **defaults: bool | int | float | str) -> ConfigDict:
    r"""Reads the `a=1,b,c=x` of `--config=FILE:a=1,b,c=x`; each value gets its default's type, a bare bool is true.

    A comma belongs to a value that stands in quotes, single or double, or if a backslash stands before it.

    >>> parse_arg("join=default,debug", join="lape", debug=False, seed=0).to_dict()
    {'debug': True, 'join': 'default', 'seed': 0}
    >>> parse_arg("path='/a,b',seed=1", path="", seed=0).path, parse_arg(r"path=/a\,b", path="").path
    ('/a,b', '/a,b')

    Raises UserError for a name that is not among `defaults`, a value of another type, or a name given twice.
    """
    values, seen = dict(defaults), set()
    for item in split(arg or ""):
        name, equals, text = item.partition("=")
        if name not in defaults:
            hint = "; a comma in a value is written as \\, or within quotes" if seen and not equals else ""
            raise UserError(f"config argument {item!r}: {nearest(name, sorted(defaults))}{hint}")
        if name in seen:
            raise UserError(f"config argument {name!r} is given twice")
        kind = type(defaults[name])
        values[name] = _parse(text if equals or kind is not bool else "true", kind, f"config argument {name!r}")
        seen.add(name)
    return ConfigDict(values)


def split(arg: str) -> list[str]:
    """The items of an argument, without the empty ones; what protected commas in their values is gone.

    >>> split(r'a=1, b,c="x, y",d=/it\'s\\,so')
    ['a=1', 'b', 'c=x, y', "d=/it's,so"]
    """
    items = []
    for match in _ITEM.finditer(arg):
        name, quoted, text = match["name"], match["quoted"], match["text"]
        item = f"{name}{quoted[1:-1]}" if quoted else text.replace(r"\,", ",").strip()
        items += [item] if item else []
    return items


def resolve(values: Mapping[str, Any] | ConfigDict, config: ConfigDict) -> ConfigDict:
    """`config` with `values` put in, in place, each as its key's type.

    Raises UserError for an unknown key, a value of the wrong type, or a duration given in two units.
    """
    _merge(config, values, "", config)
    for name, units in DURATIONS.items():
        given = [f"config.{name}_{unit}" for unit in units if config[f"{name}_{unit}"] is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are the same duration, which takes one unit: remove all but one")
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
        parent[leaf] = _parse(text, parent.get_type(leaf), f"config.{key}", parent[leaf])
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


def from_json(path: str | Path, config: ConfigDict) -> ConfigDict:
    """`config` with what `to_json` wrote to the file `path` put in, in place; keys that it lacks stay as they are."""
    try:
        values = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"no config at {str(path)!r}: is it the workdir of a run?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a config: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} does not hold a config")
    try:
        return resolve(values, config)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from None


def given(path: str | Path) -> dict[str, Any] | None:
    """{dotted key: value} of what the file `path` holds, without defaults; None if it is not there, or no config."""
    try:
        return flat(ConfigDict(json.loads(Path(path).read_text())))
    except (OSError, ValueError, TypeError):
        return None


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}, without the groups."""
    found = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return found


def unknown_key(key: str, config: ConfigDict) -> UserError:
    """The error for a dotted key that `config` lacks, with the one that was probably meant."""
    paths = _paths(config)
    leaves = {path.rpartition(".")[2]: path for path in paths}
    leaf = key.rpartition(".")[2]
    close = [leaves[leaf]] if leaf in leaves else difflib.get_close_matches(key, paths, n=1, cutoff=0.6)
    close = close or [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    if close:
        return UserError(f"unknown key config.{key} (did you mean config.{close[0]}?)")
    return UserError(f"unknown key config.{key}: the keys are {listed(path for path in paths if '.' not in path)}")


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
            raise unknown_key(key, config)
        parent = parent[group]
    if leaf not in parent and not (parent is config.model and leaf):
        raise unknown_key(key, config)
    if isinstance(parent.get(leaf), ConfigDict):
        first = "name" if "name" in parent[leaf] else next(iter(parent[leaf]))
        raise UserError(f"config.{key} is a group of keys: set one of them, such as config.{key}.{first}")
    return parent, leaf


def _merge(config: ConfigDict, values: Mapping[str, Any] | ConfigDict, prefix: str, whole: ConfigDict) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in config and config.is_locked:
            raise unknown_key(path, whole)
        group = isinstance(config.get(key), ConfigDict)
        if group != isinstance(value, Mapping | ConfigDict):
            raise UserError(f"config.{path} is {value!r}: it must be {'a group of keys' if group else 'one value'}")
        if group:
            _merge(config[key], value, f"{path}.", whole)
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


def _parse(text: str, kind: type, name: str, example: Any = None) -> Any:
    """The value of type `kind` that `text` spells on a command line; `example` is one."""
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
        words = _WORDS[kind] + (f' such as "{example}"' if kind is tuple and example else "")
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
