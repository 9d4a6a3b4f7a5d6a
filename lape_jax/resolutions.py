"""Accuracy against image size, without training: runs, or a file of weights, evaluated on images of other sizes.

    python -m lape_jax.resolutions --workdir DIR [DIR ...] --out=DIR [--sizes=112,224,448] [--step=last|best|N]
    python -m lape_jax.resolutions --weights=FILE --config=FILE.py --out=DIR [--sizes=112,224,448]
                                   [--config.key=value ...]

Position tables and relative biases are interpolated, sinusoids computed anew; RoPE stays as it is. All validation
images are resized and cropped for each size as `python -m lape_jax.evaluate` does it for one. Sizes are pixels of a
side; without --sizes there are ten or so from half the trained size to more than twice of it, in whole patches. For
models that classify.

Writes resolutions.csv (a line for each model and size), and the curves as resolutions.png and .pdf. Prints them as they
are found.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from lape_jax import cli, tasks
from lape_jax.analysis import resolution
from lape_jax.analysis.resolution import Curve
from lape_jax.analysis.study import distinct_labels
from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.parallel import sharding
from lape_jax.port import files
from lape_jax.port.sizes import at_size
from lape_jax.tasks.task import Candidate
from lape_jax.train import comparison, trained


def main(argv: Sequence[str]) -> None:
    args, overrides = parse(argv)
    files.write_all(Path(args.out), {})  # says at once if it cannot be
    names = args.workdir or [args.weights]
    candidates = [comparison.load(path, args.step) for path in args.workdir] or [of_weights(args, overrides)]
    for name, one in zip(names, candidates, strict=True):
        check(one, name)
    labels = distinct_labels([comparison.label(one) for one in candidates], names)
    curves = [measure(one, name, args.sizes) for name, one in zip(labels, candidates, strict=True)]
    contents = resolution.render(curves)
    files.write_all(Path(args.out), contents)
    print(f"{args.out}: {', '.join(contents)}")


def of_weights(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> Candidate:
    """The weights in a file, with the config that says what they are evaluated on."""
    config = cli.load_config(args.config, "", overrides)
    given = {"weights": args.weights, "workdir": "", "config": args.config, "step": None, "overrides": dict(overrides)}
    return trained.load(config, argparse.Namespace(**given)).candidate()


def check(run: Candidate, name: str) -> None:
    """Raises UserError unless a model gives each image a class."""
    if tasks.of(run.config).answers != "image":
        raise UserError(f"{name} is of task {run.config.task!r}: other sizes are for models that classify images")


def measure(run: Candidate, name: str, sizes: Sequence[int] = ()) -> Curve:
    """The metrics of a model at each size; by default at `resolution.default_sizes`."""
    results, task = {}, tasks.of(run.config)
    metric, shown = task.score
    side = max(pair(run.model.image_size))
    for size in sizes or resolution.default_sizes(run.model):
        try:
            model, variables = at_size(run.model, run.variables, size)
        except UserError as error:
            raise UserError(f"--sizes: {size} is not possible: {error}") from error
        config = run.config.copy_and_resolve_references()
        config.data.image_size = size
        mesh = sharding.data_mesh()
        source = task.open_for(config, "val", run.classes, name)
        evaluator = task.evaluator(config, model, mesh, source)
        results[size] = evaluator(jax.device_put(variables, sharding.replicated(mesh)))
        print(f"{name}: {size} x {size} pixels, {shown} {results[size][metric]:.2f}%", flush=True)
    return Curve(name, side, results, (metric, shown))


def _sizes(text: str) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.isdecimal() and 0 < int(part) < 100_000 for part in parts):
        raise argparse.ArgumentTypeError(f"is {text!r}: it must be numbers of pixels, such as 112,224,448")
    return sorted(set(map(int, parts)))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The options, and the overrides of the config."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.Parser(prog="python -m lape_jax.resolutions", description=__doc__)
    comparison.add_options(parser, config=True)
    parser.add_argument("--sizes", type=_sizes, default="", help="pixels of a side, such as 112,224,448")
    args = parser.parse_args(rest)
    comparison.check(args, "--config=FILE.py")
    if args.workdir and overrides:
        raise UserError("a run is taken with its own config: leave out --config")
    return args, overrides


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
