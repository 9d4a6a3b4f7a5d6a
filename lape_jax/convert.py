"""Converts weights between PyTorch, big_vision and lape_jax.

    python -m lape_jax.convert SRC DST --model=deit_ti [--to=torch|lape|big_vision|timm] [--model.join=lape ...]

SRC is a file (known by its content; of a checkpoint with several sets of weights that fit FILE:KEY, such as
checkpoint.pth.tar:state_dict_ema) or the workdir of a run, of which the best checkpoint is taken; DST a file (.npz,
.safetensors). Whose names SRC has is recognised. Number of classes, joining method, learned tables, distillation token,
windows, patches, channels and image size are read off the weights, as far as they tell, where --model.KEY=VALUE does
not give them; all else is the model's. (A .safetensors file that `convert` or `export` wrote says it all itself, and
names its model.) They do not tell `pe_norm`, PEGs, RoPE that learns nothing, "shared" from "default" or "lape_sharing"
from "lape"; nor, in a PyTorch file, a sinusoid from a learned table, which under our own names is not among the weights
at all. Every weight must have its place: nothing is dropped, made up or reshaped.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lape_jax import cli, models, port
from lape_jax.config.reading import literal
from lape_jax.errors import UserError, listed, nearest
from lape_jax.parallel import sharding
from lape_jax.port import about, files
from lape_jax.port.checkpoint import Part, choose
from lape_jax.port.contents import directory_weights
from lape_jax.port.infer import infer
from lape_jax.port.params import flatten
from lape_jax.tasks import config as configs
from lape_jax.train import finished

FORMATS = {
    "torch": "PyTorch",
    "lape": "lape_jax",
    "big_vision": "big_vision",
    "mmseg": "MMSegmentation",
    "timm": "timm",
}


def main(argv: Sequence[str]) -> None:
    args, settings = parse(argv)
    if args.to not in FORMATS:
        raise UserError(f"--to={nearest(args.to, FORMATS)}")
    if Path(args.src).is_dir() and not directory_weights(Path(args.src)):
        if args.model or settings:
            raise UserError("a run says itself which model it has trained: leave out --model")
        model, variables, texts = from_run(Path(args.src))
        names = "a run"
    else:
        known = about.read(args.src)
        name, settings = asked(args.src, known, args.model, settings)
        weights, place = files.read(args.src)
        names = f"{FORMATS[files.format_of(weights)]}'s names"
        model, variables = from_weights(weights, place, name, settings)
        texts = known and about.write(name, model, known.mean, known.std, known.classes)
    port.save(args.dst, variables, model, format=args.to, metadata=texts if args.dst.endswith(".safetensors") else None)
    table(variables)
    print(f"{args.src} ({names}) -> {args.dst} ({FORMATS[args.to]}'s names): {describe(model)}")


def from_run(path: Path) -> tuple[nn.Module, dict, dict[str, str]]:
    """Model and variables of the best checkpoint of a run, and what a file should say of them."""
    config = configs.from_json(path / "config.json")
    mesh = sharding.data_mesh()  # whatever devices the run had
    classes = finished.classes(path, "the run")
    model, variables = finished.best(path, config, len(classes), mesh, "the run")
    return (
        model,
        jax.device_get(variables),
        about.write(config.model.name, model, config.data.mean, config.data.std, classes),
    )


def asked(path: str, known: about.About | None, name: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of the model whose weights a file holds: what it says of itself, or else what is given.

    Raises:
        UserError: there is no name, or what is given contradicts the file.
    """
    if known is None:
        if not name:
            raise UserError(f"--model=NAME is missing: it is one of {listed(models.VARIANTS)}")
        return name, settings
    if name not in ("", known.model):
        raise UserError(f"--model={name} contradicts {path}, which holds weights of {known.model}: leave it out")
    model = create(known.model, known.settings)
    for key, value in settings.items():
        if getattr(create(known.model, {key: value}), key) != getattr(model, key):
            raise UserError(
                f"--model.{key}={value} contradicts {path}, which says {getattr(model, key)!r}: leave it out"
            )
    return known.model, known.settings


def create(name: str, settings: dict[str, Any]) -> nn.Module:
    """The model of --model=NAME with the settings --model.KEY=VALUE; errors name the option."""
    try:
        return models.create(name, **settings)
    except UserError as error:
        raise UserError(f"--model={name}: {error}") from error


def from_weights(
    weights: dict[str, Any], place: str, name: str, settings: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that the weights are for, of the family and size `name`, and its variables.

    Raises:
        UserError: no such model has these weights; says what the most probable one lacks or has too many.
    """
    asked = create(name, settings)
    fixed = {key: getattr(asked, key) for key in settings}

    def attempt(part: Part) -> tuple[nn.Module, dict[str, Any]]:
        given = {**part.arrays, **part.outside}
        candidates = infer(lambda probe: files.stored_shapes(given, probe), asked)
        return files.fit_first([one.clone(**fixed) for one in candidates], lambda model: files.fit(given, model))

    with files.speaking_of(place):
        part, found = choose(weights, files.known(asked), attempt)
    files.say(place, part.notes)
    return found


def table(variables: dict[str, Any]) -> None:
    """Prints every variable with its shape, type, mean and standard deviation."""
    print(f"{'variable':48} {'shape':22} {'type':9} {'mean':>10} {'std':>10}")
    for path, array in flatten(variables).items():
        full = np.asarray(array, np.float64)
        print(f"{path:48} {array.shape!s:22} {array.dtype!s:9} {full.mean():10.3g} {full.std():10.3g}")


def describe(model: nn.Module) -> str:
    """A line on the model: what it is, and the number of its parameters."""
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(model.param_shapes()))
    height, width, _ = model.input_shape
    kind = f"join {model.joining}, pe {model.pe}, " if hasattr(model, "joining") else ""
    return (
        f"{type(model).__name__} ({kind}{height} x {width} pixels, {model.num_classes} classes), {count:,} parameters"
    )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings of the model."""
    settings, rest = split_settings(argv)
    parser = cli.Parser(
        prog="python -m lape_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", type=os.path.expanduser, help="file of weights, or workdir of a run")
    parser.add_argument("dst", metavar="DST", type=os.path.expanduser, help="file to write")
    parser.add_argument("--model", default="", metavar="NAME", help="which model SRC holds, e.g. deit_ti")
    parser.add_argument("--to", default="torch", metavar="FORMAT", help=f"{' | '.join(FORMATS)} (default %(default)s)")
    return parser.parse_args(rest), settings


def split_settings(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of all `--model.KEY=VALUE` by key, and the other arguments."""
    settings, rest = {}, []
    for arg in argv:
        match = re.fullmatch(r"--model\.([^=]+)=(.*)", arg, re.DOTALL)
        if match:
            settings[match[1]] = literal(match[2], f"--model.{match[1]}")
        else:
            rest.append(arg)
    return settings, rest


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
