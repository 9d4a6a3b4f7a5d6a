"""Weights to use: those of a run, or of a file; with the model, the classes and the images that go with them."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lape_jax import port, tasks
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port import about as abouts
from lape_jax.train import finished, setup

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A model that has learned something.

    Attributes:
        variables: of the model, on the host or wherever they were asked for.
        ema: the running mean of the run's weights, or None.
        classes: names of what it has learned.
        what: to call it in messages.
        step: of the run's checkpoint; None of a file.
    """

    model: nn.Module
    variables: Any
    ema: Any
    classes: tuple[str, ...]
    what: str
    step: int | None = None


def check_origin(args: argparse.Namespace) -> None:
    """Raises UserError unless the options name one origin of weights, a run or a file, and fit it."""
    if bool(args.weights) == bool(args.workdir):
        raise UserError("give either --workdir=DIR (a run) or --weights=FILE with --config=FILE.py")
    for name in ("step", "ema"):
        if args.weights and getattr(args, name, ""):
            raise UserError(f"--{name} is of a run: leave it out with --weights")
    if args.workdir and args.config:
        raise UserError("a run is taken with its own config: leave out --config (single keys can be overridden)")


def load(config: ConfigDict, args: argparse.Namespace, step: str, strategies: Any) -> Trained:
    """The weights that --workdir or --weights name.

    `config` is changed, in place, to what holds: a run's mesh that these devices cannot form becomes one over all of
    them; a file that says what its images and its model are is believed.

    Args:
        config: the run's, or that of --config, with the overrides put in.
        args: the options; `args.overrides` are the keys of the config that were given on the command line.
        step: which checkpoint of a run: "last", "best" or a number.
        strategies: how variables are split over the mesh.

    Raises:
        UserError: there are no such weights, they do not fit, or the command line contradicts what they say.
    """
    _fit_mesh(config, args.overrides)
    mesh = sharding.make_mesh(config.mesh)
    if args.workdir:
        path = Path(args.workdir)
        classes = finished.classes(path, "the run")
        model = setup.build_model(config, len(classes))
        state, found = finished.state(path, config, model, mesh, step, strategies)
        return Trained(model, state.variables, state.ema, classes, f"the run in {path}", found)
    known = abouts.read(args.weights)
    if known is not None:
        believe(config, known, args.overrides, args.weights)
    classes = (known and known.classes) or tuple(tasks.of(config).open_split(config, "train").classes)
    model = setup.build_model(config, len(classes))
    variables = jax.device_put(port.load(args.weights, model), sharding.replicated(mesh))
    return Trained(model, variables, None, classes, args.weights)


def _fit_mesh(config: ConfigDict, told: Mapping[str, str]) -> None:
    """A run may have been trained on other devices than there are here."""
    if any(key.startswith("mesh.") for key in told):
        return
    try:
        sharding.make_mesh(config.mesh)
    except UserError:
        config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})


def believe(config: ConfigDict, known: abouts.About, told: Mapping[str, str], file: str) -> None:
    """Puts what a file says of itself into `config`, and logs what that changes.

    Raises:
        UserError: the file is of another model than the config's, or the command line says something else.
    """
    if config.model.name != known.model:
        raise UserError(
            f"{file} holds weights of {known.model}, and the config is one of {config.model.name}: use a config of "
            f"{known.model}"
        )
    was = setup.build_model(config, len(known.classes) or known.settings.get("num_classes", 1))
    settings = {key: value for key, value in known.settings.items() if hasattr(was, key)}
    changed = {f"model.{key}": value for key, value in settings.items() if getattr(was, key) != value}
    # What follows from the data is not set twice.
    implied = {"data.channels": known.channels}
    implied |= {"data.mean": known.mean, "data.std": known.std} if known.mean else {}
    size = settings.get("image_size")
    if isinstance(size, int):
        implied["data.image_size"] = size
    for key in ("model.num_classes", "model.in_channels", *(["model.image_size"] if isinstance(size, int) else [])):
        changed.pop(key, None)
    changed |= {key: value for key, value in implied.items() if config.data[key.partition(".")[2]] != value}
    for key, value in changed.items():
        if key in told:
            raise UserError(f"--config.{key}={told[key]} contradicts {file}, which says {value!r}: leave it out")
        group, _, leaf = key.partition(".")
        if group == "model" and leaf in config.model:
            del config.model[leaf]  # its type may change
        config[group][leaf] = value
    if changed:
        shown = ", ".join(f"{key} {value!r}" for key, value in changed.items())
        _log.warning("%s says, and the config is changed to: %s", file, shown)
