"""Figures and numbers of what models have made of their position embeddings.

    python -m lape_jax.visualize --workdir DIR [DIR ...] --out=DIR [--step=last|best|N] [--images=N] [--overlays=N]
    python -m lape_jax.visualize --weights=FILE --model=NAME [--model.KEY=VALUE ...] --out=DIR
    both: [--token=ROW|centre] [--layers=2-8] [--eps=1e-5]

Writes to --out, as PNG and as PDF, a row or line for each run (see `lape_jax.analysis.study`):
    correlation_token     how alike the position of one token is to all others, by layer (the paper's figures 1, 3, 4)
    correlation_overall   the same for all tokens
    locality              by layer: how far the likeness reaches, how two-dimensional it is, the size of the position
    lambda                by layer: lambda_1 to 3 of equation 7, and tokens by position; of runs, which have images
    overlays              of runs that segment, if there are images: --overlays=N of them (8), true and predicted maps
and numbers.npz, all of it as arrays, whose keys `lape_jax.analysis.study` lists. Prints a table for each run.

Layers are numbered from 1. --token is a patch's number, row by row from 0; without it the centre. --eps is that of the
LayerNorms that the maps see the table through, by default the one of the authors' script; the models' own may differ.
--images: so many validation images are measured on (default 256; 0 for none); of images to segment it is the window in
the middle. A workdir's newest checkpoint is taken; of a file of weights what cannot be read off it must be said, as for
`python -m lape_jax.convert`.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lape_jax import cli, convert
from lape_jax.analysis import overlays, plots
from lape_jax.analysis.seen import SCRIPT_EPS
from lape_jax.analysis.study import Study, distinct, render, study, text
from lape_jax.augment.photometric import normalise
from lape_jax.data import decode, scene_pipeline
from lape_jax.data.example import Example, Scene, SceneSource, Source
from lape_jax.errors import UserError
from lape_jax.port import files
from lape_jax.train import config as configs
from lape_jax.train import finished, setup, sharding
from lape_jax.train.segmentation import SceneEvaluator

if TYPE_CHECKING:
    import matplotlib.figure

BATCH = {"classify": 32, "segment": 4}  # images at a time
OVERLAYS = 8  # images


class Run(NamedTuple):
    """A checkpoint of a run."""

    config: Any
    model: nn.Module
    variables: dict  # on the host


def main(argv: Sequence[str]) -> None:
    args, settings = parse(argv)
    if bool(args.workdir) == bool(args.weights):
        raise UserError("give either --workdir=DIR (one run or more) or --weights=FILE with --model=NAME")
    if args.workdir and (args.model or settings):
        raise UserError("a run says itself which model it has trained: leave out --model")
    if args.weights and (args.step or args.images or args.overlays):
        raise UserError("--step, --images and --overlays are of a run: leave them out with --weights")
    eps, layers, token = _number("eps", args.eps or SCRIPT_EPS, float), _layers(args.layers), None
    if args.token not in ("", "centre"):
        token = _number("token", args.token, int)
    contents = {}
    if args.weights:
        studies = [of_weights(args.weights, args.model, settings, eps)]
    else:
        count = _number("images", args.images or "256", int)
        runs = [load(Path(path), args.step) for path in args.workdir]
        studies = distinct([of_run(run, count, eps) for run in runs], args.workdir)
        shown = _number("overlays", args.overlays or str(OVERLAYS), int) if count else 0
        contents = drawn_overlays({one.label: run for one, run in zip(studies, runs, strict=True)}, shown)
    contents = render(studies, eps, token, layers) | contents
    write(Path(args.out), contents)
    print("\n\n".join(map(text, studies)))
    print(f"\n{args.out}: {', '.join(contents)}")


def of_weights(path: str, name: str, settings: dict[str, Any], eps: float) -> Study:
    """The weights in a file, for a model called `name`."""
    if not name:
        raise UserError("--model=NAME is missing: which model are the weights of?")
    model, variables = convert.from_weights(*files.read(path), name, settings)
    return study(f"{name}, {model.joining}, {model.pe}", model, variables, eps=eps)


def load(path: Path, step: str) -> Run:
    """A checkpoint of the run in `path`."""
    config = cli.load_config("", str(path))
    model = setup.build_model(config, len(finished.classes(path, "the run")))
    state, _ = finished.state(path, config, model, _mesh(), step, sharding.REPLICATED)
    return Run(config, model, jax.device_get(state.variables))


def of_run(run: Run, count: int, eps: float) -> Study:
    """A run, measured on `count` of its validation images."""
    images = validation_images(run.config, count) if count else None
    label = f"{run.model.joining}, {run.model.pe}" if hasattr(run.model, "joining") else run.config.model.name
    return study(label, run.model, run.variables, images, eps)


def _mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(configs.base().mesh)  # whatever devices a run had


def validation_images(config: Any, count: int) -> Iterator[jax.Array]:
    """So many validation images of a run, from all over the set, as its model sees them, in batches."""
    try:
        source = Spread(setup.open_split(config, "val"), count)
    except UserError as error:
        raise UserError(f"{error} (--images=0 does without)") from error
    size = min(BATCH[config.task], len(source))
    if config.task == "segment":
        batches = _windows(config, source, size)
    else:
        batches = (batch["image"][batch["mask"] > 0] for batch in setup.evaluation_batches(config, source)(size, 0, 1))
    return (normalise(jnp.asarray(batch), config.data.mean, config.data.std) for batch in batches)


def _windows(config: Any, source: SceneSource, size: int) -> Iterator[np.ndarray]:
    """The middle of each image, whose shorter side is resized to that of a window; `size` of them at a time."""
    data, batch = config.data, []
    with scene_pipeline.scenes(source, range(len(source)), data.channels, data.threads) as scenes:
        for pixels, _, _ in scenes:
            batch.append(decode.eval_crop(pixels, data.image_size, 1.0))
            if len(batch) == size:
                yield np.stack(batch)
                batch = []
    if batch:
        yield np.stack(batch)


def drawn_overlays(runs: Mapping[str, Run], count: int) -> dict[str, bytes]:
    """Files by name: overlays.png and .pdf, `count` images, of all the runs that segment, by what they are called.

    Raises:
        UserError: they are not of the same validation images, or these cannot be read.
    """
    runs = {label: run for label, run in runs.items() if run.config.task == "segment"}
    if not runs or not count:
        return {}
    first, *others = runs.values()
    for other in others:
        for key in ("source", "path", "name", "val_split", "channels"):
            here, there = (run.config.data[key] for run in (first, other))
            if here != there:
                raise UserError(
                    f"these runs segment other images: data.{key} is {here!r} and {there!r} (--images=0 does without)"
                )
    source, predicted = setup.open_split(first.config, "val"), {}
    for label, (config, model, variables) in runs.items():
        mesh = _mesh()
        evaluator = SceneEvaluator(model, config, mesh, source)
        predicted[label] = evaluator, jax.device_put(variables, sharding.replicated(mesh))
    figure = compare(first.config, source, count, predicted)
    return {f"overlays.{form}": plots.render(figure, form) for form in plots.FORMATS}


def compare(
    config: Any, source: SceneSource, count: int, predictors: Mapping[str, tuple[SceneEvaluator, Any]]
) -> "matplotlib.figure.Figure":
    """`count` scenes from all over a set, beside what evaluators (with variables, by title) make of them."""
    source = Spread(source, count)
    with scene_pipeline.scenes(source, range(len(source)), config.data.channels, config.data.threads) as scenes:
        images, truths, names = zip(*scenes, strict=True)
    maps = [list(evaluator.maps(variables, images)) for evaluator, variables in predictors.values()]
    rows = list(zip(images, truths, *maps, strict=True))
    return overlays.comparison(rows, source.classes, list(predictors), [Path(name).name for name in names])


class Spread:
    """`count` examples of a source at equal distances: the data sets lie there class by class."""

    def __init__(self, source: Source | SceneSource, count: int):
        self.source, self.count, self.classes = source, min(count, len(source)), source.classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example | Scene:
        return self.source[index * len(self.source) // self.count]


def write(out: Path, contents: dict[str, bytes]) -> None:
    """Each file whole or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}") from error
    for name, content in contents.items():
        with files.replacing(out / name) as file:
            file.write(content)


def _number(name: str, given: str | float, kind: type) -> Any:
    try:
        value = kind(given)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise UserError(f"--{name}={given}: it must be {'a whole' if kind is int else 'a finite'} number, at least 0")
    return value


def _layers(given: str) -> list[int] | None:
    """The numbers in a text such as "2-8" or "1,4,7-9"."""
    found: list[int] = []
    for part in given.split(",") if given else ():
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--layers={given}: it must be numbers of layers such as 2-8 or 1,4,7-9")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found or None


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings of the model."""
    settings, rest = convert.split_settings(argv)
    parser = cli.Parser(
        prog="python -m lape_jax.visualize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", nargs="+", default=[], metavar="DIR", type=os.path.expanduser, help="runs")
    parser.add_argument("--weights", default="", metavar="FILE", type=os.path.expanduser, help="weights instead")
    parser.add_argument("--model", default="", metavar="NAME", help="which model they are of, e.g. deit_ti")
    parser.add_argument("--out", required=True, metavar="DIR", type=os.path.expanduser, help="directory to write to")
    parser.add_argument("--token", default="", metavar="ROW", help="patch whose map is drawn (default: centre)")
    parser.add_argument("--layers", default="", help="layers whose maps are drawn, such as 2-8 (default: all)")
    parser.add_argument("--step", default="", help="which checkpoint: last (default), best or a step")
    parser.add_argument("--overlays", default="", metavar="N", help=f"images in overlays.png (default {OVERLAYS})")
    parser.add_argument("--images", default="", metavar="N", help="validation images to measure on (default 256)")
    parser.add_argument("--eps", default="", help=f"of the LayerNorms in the maps (default {SCRIPT_EPS})")
    return parser.parse_args(rest), settings


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
