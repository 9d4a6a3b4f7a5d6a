"""Programs are too small here for XLA to optimise them."""

import jax
import pytest

from tests import quick


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(jax, "jit", quick.jit)
