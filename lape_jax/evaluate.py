"""Evaluates a run's checkpoint, or a file of weights, over every validation example once.

    python -m lape_jax.evaluate --workdir=DIR [--step=N|last|best] [--config.key=value ...]
    python -m lape_jax.evaluate --weights=FILE --config=FILE.py [--config.key=value ...]

Without --step a workdir's newest checkpoint is evaluated. FILE holds PyTorch or lape_jax weights: .npz, .safetensors,
.pth or .pt. The last line printed is one JSON object.
"""

import argparse
import json
import sys

import jax
from ml_collections import ConfigDict

from lape_jax import cli, port
from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.train import hosts, setup, sharding
from lape_jax.train import state as states
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.evaluation import Evaluator


def main(config: ConfigDict, args: argparse.Namespace) -> None:
    with hosts.together(config, cli.report):
        results = evaluate(config, args)
        if jax.process_index() == 0:
            print(json.dumps(results))


def evaluate(config: ConfigDict, args: argparse.Namespace) -> dict:
    """What was evaluated, and its metrics."""
    if bool(args.weights) == bool(args.workdir):
        raise UserError("give either --workdir=DIR (a run) or --weights=FILE with --config=FILE.py")
    if args.workdir and args.config:
        raise UserError("a run is evaluated with its own config: leave out --config (single keys can be overridden)")
    train_classes = sources.open_split(config.data, "train").classes
    source = sources.open_split(config.data, "val")
    model = setup.build_model(config, len(train_classes))
    mesh = sharding.make_mesh(config.mesh)
    if args.weights:
        params = jax.device_put(port.load(args.weights, model)["params"], sharding.replicated(mesh))
        tested = {"weights": args.weights}
    else:
        state, step = restore(config, model, mesh, args.workdir, args.step)
        params, tested = state.params, {"workdir": args.workdir, "step": step}
    evaluator = Evaluator(model, config, mesh, setup.evaluation_batches(config, source), len(source))
    results = evaluator(params)
    if args.workdir and state.ema is not None:
        results |= evaluator(state.ema, prefix="val/ema_")
    return tested | results


def restore(config, model, mesh, workdir: str, which: str) -> tuple[states.TrainState, int]:
    """The state of the newest ("" or "last"), best ("best") or given checkpoint in `workdir`, and its step."""
    abstract = setup.abstract_state(config, model, mesh, config.sharding)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = None
        if which == "best":
            step = checkpoints.best_step()
            if step is None:
                raise UserError(f"no checkpoint in {workdir} was evaluated: use --step=last")
        elif which not in ("", "last"):
            if not which.isdecimal():
                raise UserError(f"--step is {which!r}: it must be a step, 'last' or 'best'")
            step = int(which)
        restored = checkpoints.restore(abstract, step)
    if restored is None:
        raise UserError(f"there are no checkpoints in {workdir}")
    return restored


if __name__ == "__main__":
    options = {"weights": "weights to evaluate instead of a run's", "step": "which checkpoint: N, last or best"}
    sys.exit(cli.run(main, description=__doc__, options=options))
