import functools

import pytest

from lape_jax.models.vit import ViT


@pytest.fixture(scope="module", autouse=True)
def shapes_once():
    """Finding the shapes of a model takes 0.1 s, and the same few models come up again and again here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViT, "variable_shapes", functools.cache(ViT.variable_shapes))
        yield
