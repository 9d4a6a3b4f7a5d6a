"""Weights to use, of a run or of a file: with the model, the classes and the images that go with them.

Whatever names weights is answered by one of three: --workdir, or --weights with a config (`load`); a run that teaches,
or that another one starts from (`of_run`); a file whose model is only named (`lape_jax.train.weights_file.of_name`).
Of a run they all take the same checkpoint, unless --step says which: the best that was evaluated, or the newest if none
was.
"""

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lape_jax import port, tasks
from lape_jax.config.options import truth
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port import about as abouts
from lape_jax.port.hub import local
from lape_jax.tasks import config as configs
from lape_jax.tasks.task import Candidate
from lape_jax.train import setup
from lape_jax.train import state as states
from lape_jax.train import workdir as workdirs
from lape_jax.train.checkpoint import Checkpoints

_log = logging.getLogger(__name__)

BEST, LAST = "best", "last"
Which = int | str | None  # checkpoint of a run: its step, BEST or LAST; None: the best, or the newest if there is none
STEP_HELP = "checkpoint of a run: a step, last or best (default: the best that was evaluated, or else the newest)"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that has learned something.

    Attributes:
        name: the name of the model, as `models.create` knows it.
        variables: the variables of the model, on the host or wherever they were asked for.
        classes: names of what it has learned; None or () if nobody knows.
        mean, std: mean and deviation of the images, by channel, as `config.data` has them; None or () if nobody knows.
        what: what messages call it.
        config: the config that holds for it; None for a file whose model was only named.
        ema: the EMA of the run's weights, or None.
        step: the step of the run's checkpoint; None for a file.
        why: why it is this step.
        format: whose names the weights in a file have, see `lape_jax.port.files.format_of`; "" if that was not asked.
    """

    name: str
    model: Any
    variables: dict
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    what: str
    config: ConfigDict | None = None
    ema: dict | None = None
    step: int | None = None
    why: str = ""
    format: str = ""

    @property
    def origin(self) -> str:
        """Where the weights are from, for a line."""
        return self.what if self.step is None else f"{self.what}: step {self.step}, {self.why}"

    def candidate(self) -> Candidate:
        """What a task predicts with."""
        return Candidate(self.config, self.model, jax.device_get(self.variables), self.classes)

    def texts(self) -> dict[str, str] | None:
        """What a file with these weights should say of itself, None if that is not known."""
        if not self.classes or not self.mean:
            return None
        return abouts.write(self.name, self.model, self.mean, self.std, self.classes)


class Restored(NamedTuple):
    """The state of a run's checkpoint, its step, and why it is this one."""

    state: states.TrainState
    step: int
    why: str


# ---- Options --------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, *, ema: bool = False) -> None:
    """Adds --weights and --step to a command that has --workdir and --config, and perhaps --ema: what `load` takes."""
    parser.add_argument(
        "--weights", default="", metavar="FILE", type=os.path.expanduser, help="weights instead of a run's"
    )
    add_step(parser)
    if ema:
        parser.add_argument("--ema", type=truth, default=False, help="true: the EMA of the run's weights")


def add_step(parser: argparse.ArgumentParser) -> None:
    """Adds --step."""
    parser.add_argument("--step", type=_which, metavar="N|last|best", help=STEP_HELP)


def _which(text: str) -> Which:
    if text not in (BEST, LAST) and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}: it must be a step, 'last' or 'best'")
    return int(text) if text.isdecimal() else text


# ---- Of a run, or of a file with a config --------------------------------------------------------------------------


def load(config: ConfigDict, args: argparse.Namespace, strategies: Any = sharding.REPLICATED) -> Trained:
    """The weights that --workdir or --weights name, on the devices; with --ema of a run their EMA.

    `config` is changed, in place, to what holds: a run's mesh that these devices cannot form becomes one over all of
    them; a file that says what its images and its model are is believed.

    Args:
        config: the config of the run, or that of --config, with the overrides put in.
        args: the options of `add_options`; `args.overrides` are the keys of the config that were given on the command
            line.
        strategies: how variables are split over the mesh.

    Raises:
        UserError: the options name no origin or two, there are no such weights, they do not fit, or the command line
            contradicts what they say.
    """
    averaged = getattr(args, "ema", False)
    if bool(args.weights) == bool(args.workdir):
        raise UserError("give either --workdir=DIR (a run) or --weights=FILE with --config=FILE.py")
    for name, given in (("step", args.step is not None), ("ema", averaged)):
        if args.weights and given:
            raise UserError(f"--{name} is of a run: leave it out with --weights")
    if args.workdir and args.config:
        raise UserError("a run is taken with its own config: leave out --config (single keys can be overridden)")
    _fit_mesh(config, args.overrides)
    mesh = sharding.make_mesh(config.mesh)
    if args.weights:
        return _of_config(args.weights, config, args.overrides, mesh)
    found = of_run(Path(args.workdir), config, mesh=mesh, step=args.step, strategies=strategies)
    if averaged and found.ema is None:
        raise UserError(f"{found.what} keeps no EMA of its weights: leave out --ema")
    return dataclasses.replace(found, variables=found.ema) if averaged else found


def of_run(
    path: Path,
    config: ConfigDict | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    step: Which = None,
    strategies: Any = sharding.REPLICATED,
    what: str = "the run",
) -> Trained:
    """The weights of a run, on the devices.

    Args:
        path: the workdir of the run.
        config: a config to use instead of the run's own.
        mesh: the mesh of devices, by default over all of them.
        step: which checkpoint.
        strategies: how variables are split over the mesh.
        what: what errors call it.

    Raises:
        UserError: there is no such run or checkpoint, or it is not one of the config's.
    """
    config = configs.from_json(path / "config.json") if config is None else config
    names = classes(path, what)
    model = setup.build_model(config, len(names))
    state, step, why = restore(path, config, model, mesh or sharding.data_mesh(), step, strategies, what)
    return Trained(
        config.model.name,
        model,
        state.variables,
        names,
        config.data.mean,
        config.data.std,
        f"{what} in {path}",
        config=config,
        ema=state.ema,
        step=step,
        why=why,
    )


def classes(path: Path, what: str) -> tuple[str, ...]:
    """Names of the classes that the run in `path`, which is called `what`, was trained for."""
    try:
        return tuple(json.loads((path / workdirs.DATA).read_text())["classes"])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{str(path / workdirs.DATA)!r} does not say which classes {what} knows: is it the workdir of a run?"
        ) from None


def restore(
    path: Path,
    config: ConfigDict,
    model: Any,
    mesh: jax.sharding.Mesh,
    which: Which = None,
    strategies: Any = sharding.REPLICATED,
    what: str = "the run",
) -> Restored:
    """The state of a checkpoint of the run in `path`, see `of_run`.

    Raises:
        UserError: there is no such checkpoint, or it is not one of the config's.
    """
    abstract = setup.abstract_state(config, model, mesh, strategies)
    with Checkpoints(path, read_only=True) as checkpoints:
        best = checkpoints.best_step() if which in (None, BEST) else None
        if which == BEST and best is None:
            raise UserError(f"no checkpoint in {path} was evaluated: use --step=last")
        restored = checkpoints.restore(abstract, which if isinstance(which, int) else best)
    if restored is None:
        raise UserError(f"{what} in {str(path)!r} has no checkpoints")
    if isinstance(which, int):
        why = "as asked"
    elif best is not None:
        why = "the best that was evaluated"
    elif which == LAST:
        why = "the newest"
    else:
        why = "the newest, as none was evaluated"
    return Restored(*restored, why)


def _of_config(file: str, config: ConfigDict, told: Mapping[str, str], mesh: jax.sharding.Mesh) -> Trained:
    here = local(file)
    known = abouts.read(here)
    if known is not None:
        believe(config, known, told, file)
    names = (known and known.classes) or tuple(tasks.of(config).open_split(config, "train").classes)
    model = setup.build_model(config, len(names))
    variables = jax.device_put(port.load(here, model), sharding.replicated(mesh))
    return Trained(config.model.name, model, variables, names, config.data.mean, config.data.std, file, config=config)


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
