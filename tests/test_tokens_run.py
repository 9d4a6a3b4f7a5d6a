"""Runs of every family: they train, go on elsewhere, and leave what is constant as it was.

Steps on eight devices that equal those on one are among the quick tests, too: tests/train/test_state.py.
"""

import re
import shutil

import jax
import numpy as np
import pytest

from lape_jax.models import rules
from lape_jax.parallel import sharding
from lape_jax.tasks.config import from_json
from lape_jax.train import setup, trained
from tests import runs

# float32, so that numbers can be compared; four steps with a checkpoint after two; little to compile
STEPS = {"dtype": "float32", "total_steps": 4, "checkpoint_percent": 50, "eval_percent": 100, "augment.policy": "none"}
# What adds the same to all logits of a softmax (of qkv's bias, k's third), or comes before a BatchNorm, has no effect:
# its gradient is rounding errors, which Adam makes as large as any other.
NOISE = re.compile(r".*(attention_pool/bias|attn/qkv/bias|attn/key/bias|mlp/(fc1|conv|fc2)/bias)")
FAMILIES = ("cct_cifar100", "t2t_vit_7", "swin_t", "deit_ti_distilled", "cvt_cifar10", "ceit_ti")
CASES = [
    *((config, "lape") for config in FAMILIES),
    *(("deit_ti", join) for join in ("default", "lape,pe=learnable+rope_mixed+peg")),
]


def saved_state(workdir, step):
    """Arrays by name of a checkpoint."""
    config = from_json(workdir / "config.json")
    model = setup.build_model(config, num_classes=10)
    mesh = sharding.make_mesh(config.mesh)
    state = trained.restore(workdir, config, model, mesh, step, config.sharding).state
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(jax.device_get(state)).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "join"), CASES)
def test_a_run_that_is_resumed_on_eight_devices_ends_where_it_would_have(config, join, tmp_path):
    config = runs.load(f"{runs.ROOT}/configs/{config}.py:debug,join={join}", **STEPS)
    _, lines = runs.train(tmp_path / "whole", config)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4]
    halfway = runs.copy(tmp_path / "whole", tmp_path)
    shutil.rmtree(halfway / "checkpoints" / "4")
    _, again = runs.train(halfway, config, devices=8)
    assert runs.losses(again) == pytest.approx(runs.losses(lines), rel=1e-5)

    start, end = (saved_state(tmp_path / "whole", step) for step in (2, 4))
    resumed = saved_state(halfway, 4)
    assert resumed.keys() == end.keys()
    for name in end:
        value = resumed[name] if NOISE.fullmatch(name) else end[name]
        np.testing.assert_allclose(resumed[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    learned = [name for name in end if name.startswith(("params/", "ema/params/"))]
    assert all((start[name] != end[name]).any() for name in learned)
    constants = [name for name in end if "constants/" in name]
    assert len(constants) == (4 if config.model.name == "t2t_vit_7" else 0)  # two, and their copies in the average
    for name in constants:
        np.testing.assert_array_equal(start[name], end[name])
