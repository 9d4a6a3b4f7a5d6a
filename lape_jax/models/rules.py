"""Ordered (regex, value) rules over parameter names: how the optimiser and the sharding address parameters.

A parameter's name is its path in the tree joined by "/", for example "blocks/attn/qkv/kernel". A rule's pattern has
to match the whole name; the first rule that matches gives the value; every parameter must be matched by some rule.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from lape_jax.errors import UserError


def path_name(path: tuple) -> str:
    """The "/"-joined name of a JAX key path: dict keys, attribute names and sequence indices alike."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat_names(tree: Any) -> dict[str, Any]:
    """{name: leaf} of any pytree, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_stacked(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the first axis of a parameter counts layers: those of blocks, and position tables of each block."""
    in_blocks = {"blocks", "encoderblock", "pe_norms"} & set(name.split("/")[:-1])
    return bool(in_blocks) or (name.startswith("pos_embed") and len(shape) == 3)


def assign(rules: Sequence[Any], tree: Any, *, setting: str) -> Any:
    """The value of the first matching rule for every leaf of `tree`, as a tree of the same structure.

    Args:
        rules: ordered (regex, value) pairs; a regex must match a whole name (`re.fullmatch`).
        tree: any pytree; only its leaf names matter.
        setting: where the rules come from, for error messages, for example "optimizer.lr_mults".

    Raises:
        UserError: a rule that is no (regex, value) pair, a pattern that is no regular expression, or a leaf that no
            rule matches.
    """
    compiled = []
    for rule in rules:
        if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(f"{setting}: {rule!r} is not a (regex, value) pair")
        try:
            compiled.append((re.compile(rule[0]), rule[1]))
        except re.error as error:
            raise UserError(f"{setting}: {rule[0]!r} is not a regular expression ({error})") from error

    def value(path, leaf):
        name = path_name(path)
        for pattern, result in compiled:
            if pattern.fullmatch(name):
                return result
        raise UserError(f"{setting}: no rule matches the parameter {name!r}; end the list with a rule for '.*'")

    return jax.tree_util.tree_map_with_path(value, tree)
