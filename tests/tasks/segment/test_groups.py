"""UperNet's groups of parameters, all of them, against the facts about the official ones over the official names."""

from pathlib import Path

import numpy as np
import pytest

from lape_jax import models
from lape_jax.models import rules
from lape_jax.port import params, upernet
from lape_jax.tasks.config import base
from lape_jax.tasks.segment.groups import UPERNET_WD_MULTS
from lape_jax.train import groups
from tests import quick

# Names of czczup/ViT-Adapter's parameters, and how many axes each has.
NAMES = Path(__file__).parent / "golden" / "upernet_vit_adapter_ti.txt"


def official(join: str) -> dict[str, tuple[float, bool]]:
    """By name: what multiplies the learning rate, and whether there is weight decay."""
    axes = {name: int(count) for name, count in map(str.split, NAMES.read_text().splitlines())}
    if join == "lape":
        axes |= {f"backbone.blocks.{i}.pe_norm.{leaf}": 1 for i in range(12) for leaf in ("weight", "bias")}
    found = {}
    for name, count in axes.items():
        parts = name.split(".")
        layer = 13
        if name == "backbone.pos_embed" or parts[:2] == ["backbone", "patch_embed"]:
            layer = 0
        elif parts[:2] == ["backbone", "blocks"]:
            layer = int(parts[2]) + 1
        found[name] = (0.95 ** (13 - layer), count > 1 and parts[-1] != "bias")
    return found


def ours(size: str, join: str) -> dict[str, tuple[float, bool]]:
    variables = models.create(f"upernet_vit_adapter_{size}", join=join, attention="xla").variable_shapes()
    optimizer = base().optimizer
    optimizer.layer_decay, optimizer.wd_mults = 0.95, UPERNET_WD_MULTS
    lr, wd = (rules.flat_names(tree) for tree in groups.multipliers(optimizer, variables["params"], ()))
    found = {}
    for entry in upernet.entries({path: leaf.shape for path, leaf in params.flatten(variables).items()}):
        if entry.path in lr:  # and is no running mean of a BatchNorm
            mult, decay = lr[entry.path], wd[entry.path]
            assert np.shape(mult) == (() if entry.layer is None else (12,))
            assert decay in (0.0, 1.0)
            found[entry.names[0]] = (mult if entry.layer is None else mult[entry.layer], bool(decay))
    return found


@pytest.mark.parametrize(("size", "join"), quick.first(1, [("ti", "lape"), ("s", "lape"), ("ti", "default")]))
def test_every_parameter_of_upernet_is_in_its_group(size, join):
    expected, found = official(join), ours(size, join)
    assert found.keys() == expected.keys()
    assert {name: decay for name, (_, decay) in found.items()} == {n: decay for n, (_, decay) in expected.items()}
    for name, (scale, _) in expected.items():
        assert found[name][0] == pytest.approx(scale, rel=1e-12), name
    assert len(set(found.values())) == 28


def test_the_facts_say_what_is_unusual():
    table = official("lape")
    assert table["backbone.pos_embed"] == (pytest.approx(0.5133, abs=1e-4), True)
    assert table["backbone.level_embed"] == (1, True)
    assert table["backbone.blocks.11.gamma1"] == table["backbone.blocks.11.pe_norm.weight"] == (0.95, False)
    assert table["backbone.interactions.0.injector.gamma"] == table["backbone.spm.stem.1.weight"] == (1, False)
    assert len(set(table.values())) == 28
