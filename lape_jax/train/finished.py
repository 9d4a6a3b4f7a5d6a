"""The weights of another run: of a teacher, or to start from."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.train import setup
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints


def classes(path: Path, what: str) -> tuple[str, ...]:
    """Names of the classes that the run in `path`, which is called `what`, was trained for."""
    try:
        return tuple(json.loads((path / workdirs.DATA).read_text())["classes"])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{str(path / workdirs.DATA)!r} does not say which classes {what} knows: is it the workdir of a run?"
        ) from None


def state(
    path: Path, config: ConfigDict, model: nn.Module, mesh: jax.sharding.Mesh, which: str, strategies: Any
) -> tuple[states.TrainState, int]:
    """The state of a checkpoint of the run in `path`, and its step.

    Args:
        config: the run's.
        which: "" or "last" for the newest checkpoint, "best" for that with the highest metric, or a step.
        strategies: how it is split over the mesh.

    Raises:
        UserError: there is no such checkpoint, or it is not one of the config's.
    """
    abstract = setup.abstract_state(config, model, mesh, strategies)
    with Checkpoints(path, read_only=True) as checkpoints:
        step = None
        if which == "best":
            step = checkpoints.best_step()
            if step is None:
                raise UserError(f"no checkpoint in {path} was evaluated: use --step=last")
        elif which not in ("", "last"):
            if not which.isdecimal():
                raise UserError(f"--step is {which!r}: it must be a step, 'last' or 'best'")
            step = int(which)
        restored = checkpoints.restore(abstract, step)
    if restored is None:
        raise UserError(f"there are no checkpoints in {path}")
    return restored


def best(
    path: Path, config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh, what: str
) -> tuple[nn.Module, dict]:
    """Model and variables, in full on every device, of the best checkpoint that was evaluated, or else the newest one.

    Args:
        path: workdir of the run.
        config: the run's.
        num_classes: that it was trained for.
        what: the run is called in errors.

    Raises:
        UserError: there are no checkpoints, or they are not those of the config.
    """
    model = setup.build_model(config, num_classes)
    abstract = setup.abstract_state(config, model, mesh, ((".*", "replicate"),))
    with Checkpoints(path, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract, checkpoints.best_step())
    if restored is None:
        raise UserError(f"{what} in {str(path)!r} has no checkpoints")
    return model, restored[0].variables
