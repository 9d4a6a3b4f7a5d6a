"""The state at step 0: freshly initialised, or with the weights of another model as far as they fit."""

import logging
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port.contents import directory_weights
from lape_jax.port.transfer import Transfer, transfer, warm_start
from lape_jax.tasks import config as configs
from lape_jax.train import finished
from lape_jax.train import state as states

_log = logging.getLogger(__name__)


def create(
    config: ConfigDict, model: nn.Module, init: Callable, abstract: states.TrainState, mesh: jax.sharding.Mesh
) -> states.TrainState:
    """The state at step 0, with the weights that `config.init` names.

    `init.weights` is a file, see `lape_jax.port.warm_start`, or the workdir of a run, whose best checkpoint is taken.
    What was loaded, resized, initialised, dropped and left out is logged.

    Raises:
        UserError: there is no such file or run, or its weights do not fit.
    """
    state = states.create(init, abstract, config.seed)
    if not config.init.weights:
        return state
    everywhere = jax.jit(lambda key: init(key).variables, out_shardings=sharding.replicated(mesh))
    fresh = jax.device_get(everywhere(jax.random.key(config.seed)))
    try:
        variables, moved = _moved(config, model, fresh, mesh)
    except UserError as error:
        raise UserError(f"config.init.weights: {error}") from error
    for line in moved.lines() if jax.process_index() == 0 else ():
        _log.warning("from %s, %s", config.init.weights, line)

    def put(old: jax.Array, new: np.ndarray) -> jax.Array:
        new = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    params, collections = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    return state.replace(
        params=jax.tree.map(put, state.params, params),
        collections=jax.tree.map(put, state.collections, collections),
        ema=None if state.ema is None else jax.tree.map(put, state.ema, variables),
    )


def _moved(config: ConfigDict, model: nn.Module, fresh: dict, mesh: jax.sharding.Mesh) -> tuple[dict, Transfer]:
    """The `fresh` variables of `model` with what could be had from `config.init.weights`."""
    path = Path(config.init.weights).expanduser()
    if not path.is_dir() or directory_weights(path):
        return warm_start(path, model, fresh, config.init.pe_norm)
    what = "the run"
    theirs = configs.from_json(path / "config.json")
    source, variables = finished.best(path, theirs, len(finished.classes(path, what)), mesh, what)
    return transfer(jax.device_get(variables), source, fresh, model, config.init.pe_norm)
