"""A run that segments, without the training: its workdir, with weights that give many classes to an image."""

import functools

import jax

from lape_jax import tasks
from lape_jax.config.reading import to_json
from lape_jax.tasks.config import base
from lape_jax.train import optim, setup
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints
from tests import runs
from tests.port.tiny import random_variables

STEP = 7


def config(**model):
    """Of scenes of digits, 48 x 64 pixels, by windows of 32."""
    found = base()
    found.task = "segment"
    found.model.update({"name": "segmenter_ti_linear", "width": 16, "depth": 2, "heads": 2, "patch_size": 8, **model})
    found.data.source = "digits"
    found.data.image_size = 32
    found.segment.scale, found.segment.stride = (64, 40), 24
    found.total_steps = found.log_steps = found.eval_steps = found.checkpoint_steps = 8
    found.warmup_steps = 0
    found.eval_batch_size = 4
    found.ema_decay = 0.9
    found.report = False
    return found


@functools.cache
def workdir(path, **model):
    """Made once for all tests; the EMA is of weights twice as large."""
    path.mkdir()
    found = config(**model)
    train, val = (tasks.of(found).open_split(found, split) for split in ("train", "val"))
    segmenter = setup.build_model(found, len(train.classes))
    tx = optim.make(found.optimizer, segmenter.param_shapes(), float, segmenter.no_weight_decay)
    with runs.on(1):
        state = jax.jit(states.initialiser(segmenter, tx, True, tasks.of(found)))(jax.random.key(0))
    variables = random_variables(segmenter)
    state = state.replace(params=variables["params"], ema=jax.tree.map(lambda leaf: 2 * leaf, variables))
    (path / "config.json").write_text(to_json(found))
    workdirs.write_data(path, train, val)
    with Checkpoints(path) as checkpoints:
        checkpoints.save(STEP, state, {"val/miou": 1.0})
        checkpoints.wait()
    return path
