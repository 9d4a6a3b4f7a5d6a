"""Runs of big_vision's ViT and of a model with a PEG: they train, and go on elsewhere as they would have."""

import re
import shutil

import jax
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.tasks.config import from_json
from lape_jax.train import setup, trained
from tests import runs

# Two steps with a checkpoint after each; float32, so that numbers can be compared.
STEPS = {"dtype": "float32", "total_steps": 2, "warmup_steps": 0}
STEPS |= {"checkpoint_percent": 50, "eval_percent": 100, "log_percent": 50}
# The bias of keys shifts all logits of a row alike: its gradient is rounding, which Adam makes as large as any other.
KEYS = re.compile(r".*(key|qkv)/bias")
MODELS = {
    "vit_ti_16": {"model.pool": "map"},
    "vit_s_16": {"model.pool": "tok", "model.scan": False, "model.join": "default"},
    "vit_micro": {"model.pe": "learnable+peg", "model.peg_blocks": 2, "model.pool": "gap"},
}


def params(workdir, step):
    """Parameters by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, num_classes=10)
    mesh = sharding.make_mesh(config.mesh)
    state = trained.restore(workdir, config, model, mesh, step, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(jax.device_get(state.params)).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_is_resumed_on_eight_devices_ends_where_it_would_have(name, tmp_path):
    config = runs.load(**{"model.name": name, **MODELS[name], **STEPS})
    _, lines = runs.train(tmp_path / "whole", config)
    halfway = runs.copy(tmp_path / "whole", tmp_path)
    shutil.rmtree(halfway / "checkpoints" / "2")
    config.mesh.fsdp = 2
    _, again = runs.train(halfway, config, devices=8)
    assert runs.losses(again)[-1] == pytest.approx(runs.losses(lines)[-1], rel=1e-5)
    start, end, resumed = params(tmp_path / "whole", 1), params(tmp_path / "whole", 2), params(halfway, 2)
    for path, value in end.items():
        if not KEYS.fullmatch(path):
            np.testing.assert_allclose(resumed[path], value, rtol=1e-4, atol=1e-5, err_msg=path)
    assert all((start[path] != value).any() for path, value in end.items())
    norms = [path for path in end if "pe_norm" in path]
    assert len(norms) == (0 if name == "vit_s_16" else 2)
    assert any(re.match(r"peg_1/|Transformer/encoderblock(_1)?/", path) for path in end)


def test_logits_of_patches_cannot_be_trained():
    config = runs.load(**{"model.name": "vit_ti_16", "model.pool": "none"})
    with pytest.raises(UserError, match=r"pool='none' gives each patch logits of its own"):
        setup.check_training(config, setup.build_model(config, num_classes=10))


def test_a_class_token_without_pe_may_be_clipped():
    """Where the row of zeros is normalised, it may not."""
    given = {"model.pe": "sincos_2d_moco", "optimizer.clip_norm": 1.0, "model.width": 16}
    config = runs.load(**{"model.name": "vit_ti_16", "model.pool": "tok", **given})
    setup.check_training(config, setup.build_model(config, num_classes=10))
    config = runs.load(**{"model.name": "vit_micro", **given})
    with pytest.raises(UserError, match="clip_norm cannot be used"):
        setup.check_training(config, setup.build_model(config, num_classes=10))
