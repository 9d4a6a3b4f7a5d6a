"""The state at step 0: freshly initialised, or with the weights of another model as far as they fit."""

import logging
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port import about
from lape_jax.port.contents import directory_weights
from lape_jax.port.hub import local
from lape_jax.port.transfer import HEAD, Transfer, transfer, warm_start, without_head
from lape_jax.train import state as states
from lape_jax.train import trained
from lape_jax.train.experiment import Experiment

_log = logging.getLogger(__name__)


def create(e: Experiment, abstract: states.TrainState) -> states.TrainState:
    """The state at step 0, with the weights that `config.init` names.

    `init.weights` is a file or a place on the hub, see `lape_jax.port.warm_start`, or the workdir of a run, whose best
    checkpoint is taken. What was loaded, resized, initialised, dropped and left out is logged. A head is taken over for
    the same classes only, or number by number where `data.match` is "order"; of a file that does not say its classes,
    for as many.

    Raises:
        UserError: there is no such file or run, or its weights do not fit.
    """
    config, model = e.config, e.model
    state = states.create(e.init, abstract, config.seed)
    if not config.init.weights:
        return state
    everywhere = jax.jit(lambda key: e.init(key).variables, out_shardings=sharding.replicated(e.mesh))
    fresh = jax.device_get(everywhere(jax.random.key(config.seed)))
    try:
        variables, moved = _moved(config, model, e.classes, fresh, e.mesh)
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


def _moved(
    config: ConfigDict, model: nn.Module, classes: Sequence[str], fresh: dict, mesh: jax.sharding.Mesh
) -> tuple[dict, Transfer]:
    """The `fresh` variables of `model` with what could be had from `config.init.weights`."""
    path = Path(config.init.weights).expanduser()
    if not path.is_dir() or directory_weights(path):
        here = local(path)
        result, moved = warm_start(here, model, fresh, config.init.pe_norm)
        known = about.read(here)
        theirs = (known and known.classes) or None
    else:
        run = trained.of_run(path, mesh=mesh)
        theirs = run.classes
        result, moved = transfer(jax.device_get(run.variables), run.model, fresh, model, config.init.pe_norm)
    return of_same_classes(result, moved, fresh, theirs, tuple(classes), config.data.match)


def of_same_classes(
    result: dict, moved: Transfer, fresh: dict, theirs: tuple[str, ...] | None, ours: tuple[str, ...], match: str
) -> tuple[dict, Transfer]:
    """What was moved, without a head that is of other classes.

    Args:
        result, moved: what `lape_jax.port.transfer` returned.
        fresh: variables as they were before.
        theirs: names of the classes of the weights; None if nobody knows.
        ours: those of the data.
        match: "name", or "order" to take the head over number by number.
    """
    headed = any(HEAD.fullmatch(path) for path in moved.loaded)
    if theirs == ours or not headed:
        return result, moved
    if theirs is None:
        note = "the head is taken over: the file does not say its classes, and has as many as the data"
        return result, moved._replace(notes=(*moved.notes, note))
    if match == "order":
        note = "the head is taken over number by number, as data.match=order asks: its classes are called otherwise"
        return result, moved._replace(notes=(*moved.notes, note))
    there, here = next((a, b) for a, b in zip(theirs, ours, strict=False) if a != b)
    why = f"the head is not taken over, as it is of other classes: {there!r} there where {here!r} is here"
    return without_head(result, moved, fresh, why)
