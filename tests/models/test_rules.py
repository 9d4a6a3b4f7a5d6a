"""Names of parameters, and the rules that address them."""

import jax
import pytest
from flax import struct

from lape_jax.errors import UserError
from lape_jax.models import rules


@struct.dataclass
class State:
    params: dict
    opt_state: tuple


def test_names_join_keys_attributes_and_indices():
    state = State({"blocks": {"norm1": 1}, "head": 2}, (3, [4]))
    assert rules.flat_names(state) == {"params/blocks/norm1": 1, "params/head": 2, "opt_state/0": 3, "opt_state/1/0": 4}


def test_the_first_rule_that_matches_a_whole_name_wins():
    tree = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 0}}
    assigned = rules.assign([("a", "never"), ("a/.*", "A"), (".*/bias", "never"), (".*", "rest")], tree, setting="s")
    assert assigned == {"a": {"kernel": "A", "bias": "A"}, "b": {"kernel": "rest"}}
    assert jax.tree.structure(assigned) == jax.tree.structure(tree)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("b", 1)], r"^some\.setting: no rule matches the parameter 'a'; end the list with a rule for '\.\*'$"),
        ([("(", 1)], r"^some\.setting: '\(' is not a regular expression"),
        ([("a",)], r"is not a \(regex, value\) pair"),
        (["ab"], r"'ab' is not a \(regex, value\) pair"),
        ([(1, "a")], r"is not a \(regex, value\) pair"),
    ],
)
def test_bad_rules_are_user_errors(pairs, message):
    with pytest.raises(UserError, match=message):
        rules.assign(pairs, {"a": 0}, setting="some.setting")
