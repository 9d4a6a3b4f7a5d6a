"""What the commands that compare models are given: one run or more, or the weights in a file."""

import argparse
import os
from pathlib import Path

from lape_jax.errors import UserError
from lape_jax.tasks.task import Candidate
from lape_jax.train import trained


def add_options(parser: argparse.ArgumentParser, *, config: bool = False) -> None:
    """Adds --workdir, --weights, --step and --out; and --config, if that says what weights are of."""
    place = {"type": os.path.expanduser}
    parser.add_argument("--workdir", nargs="+", default=[], metavar="DIR", help="runs", **place)
    parser.add_argument("--weights", default="", metavar="FILE", help="weights instead", **place)
    if config:
        parser.add_argument(
            "--config", default="", metavar="FILE[:ARG]", help="with --weights: their model, and the data", **place
        )
    trained.add_step(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write to", **place)


def check(args: argparse.Namespace, beside: str) -> None:
    """Raises UserError unless there are either runs or weights, and --step with the former alone.

    Args:
        beside: what goes with --weights, as "--model=NAME".
    """
    if bool(args.workdir) == bool(args.weights):
        raise UserError(f"give either --workdir=DIR (one run or more) or --weights=FILE with {beside}")
    if args.weights and args.step is not None:
        raise UserError("--step is of a run: leave it out with --weights")
    if bool(args.weights) != bool(getattr(args, "config", args.weights)):
        raise UserError(f"{beside} goes with --weights=FILE, and only with it")


def load(path: str, step: trained.Which) -> Candidate:
    """A checkpoint of the run in `path`; says which."""
    found = trained.of_run(Path(path), step=step)
    print(found.origin, flush=True)
    return found.candidate()


def label(run: Candidate) -> str:
    """What to call a run."""
    return f"{run.model.joining}, {run.model.pe}" if hasattr(run.model, "joining") else run.config.model.name
