"""What the values of a config may be: predicates, and lists of rules and choices that are checked one after another."""

import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lape_jax.errors import UserError, nearest

Rule = tuple[tuple[str, ...], Callable[[Any], bool], str]  # dotted keys, what holds for a right value, how to say so


def check(config: ConfigDict, rules: Sequence[Rule], choices: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError, naming key, value and what would be right, for the first value that breaks a rule.

    Args:
        rules: see `Rule`.
        choices: dotted key -> all the values that it may have.
    """
    for keys, right, words in rules:
        for key in keys:
            if not right(value := get(config, key)):
                raise UserError(f"config.{key} is {value!r}: it must be {words}")
    for key, known in choices.items():
        if (value := get(config, key)) not in known:
            raise UserError(f"config.{key}: {nearest(value, known)}")


def get(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(operator.getitem, key.split("."), config)


def numbers(value: tuple) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)


def interval(value: tuple) -> bool:
    """Two numbers above 0, the first not larger."""
    return len(value) == 2 and numbers(value) and 0 < value[0] <= value[1]


def rising_shares(value: tuple) -> bool:
    """Numbers between 0 and 1, each above the one before."""
    return numbers(value) and all(before < after for before, after in itertools.pairwise((0, *value, 1)))


def whole(value: tuple) -> bool:
    return all(isinstance(v, int) for v in value)


def pairs(value: tuple) -> bool:
    """(regex, anything) pairs."""
    return all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) and _regex(p[0]) for p in value)


def factors(value: tuple) -> bool:
    """(regex, number of at least 0, or a tuple of them) pairs."""
    lists = [p[1] if isinstance(p[1], tuple) else (p[1],) for p in value] if pairs(value) else [()]
    return all(numbers(each) and each and min(each) >= 0 for each in lists)


def _regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
