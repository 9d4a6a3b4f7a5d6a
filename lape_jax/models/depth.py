"""How deep in its network a parameter lies: an id that rises from the image to the answer, told by its name.

    0            the patch embedding, class and distillation token, registers, and the position table
    i + 1        block i, counted through all stages; the PEG behind it; its own position table, if each block has one
    depth + 1    everything else: final norm, heads, decoders, adapters
What merges patches behind a stage of Swin has the id of the last block before it.

Source: `get_num_layer_for_vit` in microsoft/unilm, `beit/optim_factory.py`, and in czczup/ViT-Adapter,
`segmentation/mmcv_custom/layer_decay_optimizer_constructor.py`; `get_swin_layer` in microsoft/SimMIM, `optimizer.py`
(where Swin's position table, off there, would count among everything else).
"""

import re
from typing import Any

import numpy as np

from lape_jax.models import rules

_STACK = re.compile(r"(blocks|Transformer/encoderblock|layers_(\d+)/blocks)/.*")
_FIRST = r"(patch_embed|embedding)/.*|cls_token|dist_token|reg_token|pos_embed|cls|pos_embedding"


def layer_ids(params: Any) -> tuple[Any, int]:
    """The ids of all parameters, and the last of them, depth + 1; without stacked blocks that is 1.

    Args:
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).

    Returns:
        (a tree of the structure of `params` with an int, or for a parameter that is stacked, (layers, ...), the vector
        of its layers' ids; the last id)
    """
    named = rules.flat_names(params)
    found = {
        match[1]: (int(match[2] or 0), named[match[0]].shape[0]) for match in map(_STACK.fullmatch, named) if match
    }
    pairs: list[tuple[str, Any]] = []
    depth = 0
    for stack, (stage, count) in sorted(found.items(), key=lambda item: item[1]):
        own = np.arange(depth, depth + count) + 1
        depth += count
        pairs += [(f"{stack}/.*", own), (f"pos_embed_{stage}", own), (f"downsample_{stage}/.*", depth)]
    pairs += [("pe_norms/.*", np.arange(1, depth) + 1)]  # of all blocks but the first
    pairs += [(f"peg_{block}/.*", block + 1) for block in range(depth)]
    tables = [name for name in ("pos_embed", "pos_embedding") if name in named]
    pairs += [(name, np.arange(depth) + 1) for name in tables if named[name].shape[:-2] == (depth,) != (1,)]
    return rules.assign([*pairs, (_FIRST, 0), (".*", depth + 1)], params, setting="layer ids"), depth + 1
