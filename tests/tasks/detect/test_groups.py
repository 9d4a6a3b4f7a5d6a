"""Which parameters of the detectors decay, against the official names."""

from pathlib import Path

from lape_jax import models
from lape_jax.models import rules
from lape_jax.port import params, vit_adapter
from lape_jax.tasks.config import base
from lape_jax.tasks.detect.groups import DETECTION_WD_MULTS
from lape_jax.train import groups

# Names of czczup/ViT-Adapter's parameters, and how many axes each has.
NAMES = Path(__file__).parent / "golden" / "mask_rcnn_vit_adapter_ti.txt"


def official() -> dict[str, bool]:
    names = [line.split()[0] for line in NAMES.read_text().splitlines()]
    return {name: not any(word in name for word in ("level_embed", "pos_embed", "norm", "bias")) for name in names}


def test_so_many_decay():
    decays = list(official().values())
    assert (decays.count(True), decays.count(False)) == (173, 249)
    found = rules.assign(DETECTION_WD_MULTS, dict.fromkeys(official(), 0), setting="wd_mults")
    assert found == {name: float(decay) for name, decay in official().items()}


def test_every_parameter_of_the_backbone_decays_as_officially():
    variables = models.create("vit_adapter_ti", variant="detection", join="lape", attention="xla").variable_shapes()
    optimizer = base().optimizer
    optimizer.wd_mults = DETECTION_WD_MULTS
    wd = rules.flat_names(groups.multipliers(optimizer, variables["params"], ())[1])
    shapes = {path: leaf.shape for path, leaf in params.flatten(variables).items()}
    entries = [entry for entry in vit_adapter.entries(shapes) if entry.path in wd]
    found = {f"backbone.{entry.names[0]}": wd[entry.path] for entry in entries}
    pe_norms = {f"backbone.blocks.{i}.pe_norm.{leaf}": 0.0 for i in range(12) for leaf in ("weight", "bias")}
    backbone = {name: float(decay) for name, decay in official().items() if name.startswith("backbone.")}
    assert found == backbone | pe_norms
