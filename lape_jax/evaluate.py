"""Evaluates a run's checkpoint, or a file of weights, over every validation example once.

    python -m lape_jax.evaluate --workdir=DIR [--step=N|last|best] [--config.key=value ...]
    python -m lape_jax.evaluate --weights=FILE --config=FILE.py [--config.key=value ...]

Without --step a workdir's newest checkpoint is evaluated. FILE holds weights of the config's very model under the
names of PyTorch, lape_jax or big_vision: .npz, .safetensors, .pth, .pt or .pth.tar, the latter three perhaps as
FILE:KEY, such as last.pth.tar:state_dict_ema. The last line printed is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lape_jax import cli, port
from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.train import finished, hosts, setup, sharding
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
    if args.weights and args.step:
        raise UserError("--step is of a run: leave it out with --weights")
    if args.workdir and args.config:
        raise UserError("a run is evaluated with its own config: leave out --config (single keys can be overridden)")
    train_classes = sources.open_split(config.data, "train").classes
    source = sources.open_split(config.data, "val")
    model = setup.build_model(config, len(train_classes))
    mesh = sharding.make_mesh(config.mesh)
    if args.weights:
        variables = jax.device_put(port.load(args.weights, model), sharding.replicated(mesh))
        tested = {"weights": args.weights}
    else:
        state, step = finished.state(Path(args.workdir), config, model, mesh, args.step, config.sharding)
        variables, tested = state.variables, {"workdir": args.workdir, "step": step}
    evaluator = Evaluator(model, config, mesh, setup.evaluation_batches(config, source), len(source))
    results = evaluator(variables)
    if args.workdir and state.ema is not None:
        results |= evaluator(state.ema, prefix="val/ema_")
    return tested | results


if __name__ == "__main__":
    options = {"weights": "weights to evaluate instead of a run's", "step": "which checkpoint: N, last or best"}
    sys.exit(cli.run(main, description=__doc__, options=options))
