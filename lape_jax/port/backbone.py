"""What weights of a backbone have beside it, and what may sit on top of it."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lape_jax.port.checkpoint import pattern

# What sits on a backbone: it may be missing in weights to start from.
ON_TOP = re.compile(r"(head|head_dist|pre_logits|MAPHead_0|norm|Transformer/encoder_norm)(/.*)?")
# What pre-training or another way to pool puts beside a backbone: it may be there, and is left out.
BESIDE = re.compile(
    r"(mask_token|mask_embed|decoder\w*|\w*heads?|\w*head_\w+|projection\w*|projector\w*|predictor\w*|prototypes\w*"
    r"|queue\w*|center|\w*loss\w*|logit_scale|classifier|fc|fc_norm|attn_pool|pooler|pre_logits|MAPHead_0)([./].*)?"
)


def alone(
    arrays: Mapping[str, Any], outside: Mapping[str, Any], known: frozenset[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arrays without those that are `BESIDE` a backbone, and what to say of these and of those `outside`.

    Args:
        arrays: weights by name.
        outside: others, which are not behind the backbone's prefix.
        known: the `pattern` of each name that the model knows.
    """
    own = {_first(name) for name in known} - {"head", "head_dist"}
    beside = [
        name
        for name in arrays
        if BESIDE.fullmatch(str(name)) and pattern(name) not in known and _first(name) not in own
    ]
    left = Counter(_first(name) for name in [*beside, *outside])
    notes = (f"left out, as no parts of the model: {', '.join(f'{name} ({n})' for name, n in left.items())}",)
    return {name: array for name, array in arrays.items() if name not in set(beside)}, notes if left else ()


def _first(name: str) -> str:
    return re.match("[^./]*", name)[0]
