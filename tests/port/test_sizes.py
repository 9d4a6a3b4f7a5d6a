"""The same weights for other image sizes."""

import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from lape_jax.port.resize import resize_table
from lape_jax.port.sizes import at_size
from tests.port.tiny import random_variables, tiny


def test_tables_are_interpolated_and_rope_is_not():
    model = tiny(pe="learnable+relative+rope_mixed")
    variables = random_variables(model)
    larger, resized = at_size(model, variables, 32)
    before, after = flatten(variables), flatten(resized)
    assert larger.image_size == 32
    np.testing.assert_array_equal(
        after["pos_embed"], resize_table(before["pos_embed"], (2, 2), (4, 4), num_prefix_tokens=1)
    )
    assert after["blocks/attn/relative_position_bias_table"].shape == (2, 49, 2)
    changed = {"pos_embed", "blocks/attn/relative_position_bias_table"}
    for path in before.keys() - changed:
        np.testing.assert_array_equal(after[path], before[path])


def test_what_cannot_be():
    model = tiny()
    with pytest.raises(UserError, match="image_size=20 is not divisible by patch_size=8"):
        at_size(model, random_variables(model), 20)
    folded = tiny(join="folded")
    with pytest.raises(UserError, match="join='folded' has constants for one image size"):
        at_size(folded, random_variables(folded), 32)
