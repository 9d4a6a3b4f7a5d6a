import functools

import pytest

from lape_jax.models.regnet import RegNet


@pytest.fixture(scope="module", autouse=True)
def shapes_once():
    """Finding the shapes of a RegNet takes a second (other models keep theirs), and the same few come up again here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RegNet, "variable_shapes", functools.cache(RegNet.variable_shapes))
        yield
