"""Evaluates a run's checkpoint, or a file of weights, over every validation example once.

    python -m lape_jax.evaluate --workdir=DIR [--step=N|last|best] [--config.key=value ...]
    python -m lape_jax.evaluate --weights=FILE --config=FILE.py [--config.key=value ...]
    both, if it segments or detects: [--out=DIR [--overlays=N]]

Of a workdir the best checkpoint is evaluated, or the newest if none was evaluated so far. FILE holds weights of the
config's very model under the names of PyTorch, lape_jax or big_vision (.npz, safetensors, or what torch.save writes);
where there are two sets of them, FILE:KEY says which, as in last.pth.tar:state_dict_ema. The last line printed is one
JSON object, which says which step it was.

Written to --out, of a run without the EMA of its weights:
segmentation
    iou.csv         a line for each class: IoU and accuracy in percent (nothing where they have no value), pixels of it
    iou.png         the IoUs as bars
    overlays.png    N images (default 8; 0 for none) from all over the set, their true maps and the predicted ones
detection
    ap.csv          a line for each class: AP of boxes and of masks (if they are learned) in percent, and of these at an
                    IoU of .50 and .75; objects of it
    box_ap.png      the AP of boxes as bars
    precision_recall.png    precision by recall, of each class and in the mean
    detections.json all that was found, in COCO's format of results, with the ids of the data's own file
    overlays.png    N images, the objects in them and those that were found
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lape_jax import cli, tasks
from lape_jax.config.options import whole
from lape_jax.errors import UserError
from lape_jax.parallel import hosts, sharding
from lape_jax.port.files import write_all
from lape_jax.tasks.task import OVERLAYS
from lape_jax.train import trained


def main(config: ConfigDict, args: argparse.Namespace) -> None:
    with hosts.together(config, cli.report):
        results = evaluate(config, args)
        if jax.process_index() == 0:
            print(json.dumps({name: _number(value) for name, value in results.items()}))


def evaluate(config: ConfigDict, args: argparse.Namespace) -> dict:
    """What was evaluated, and its metrics."""
    _check_details(config, args)
    if args.out and jax.process_index() == 0:
        write_all(Path(args.out), {})  # says at once if it cannot be
    task = tasks.of(config)
    found = trained.load(config, args, config.sharding)
    source = task.open_for(config, "val", found.classes, found.what)
    evaluator = task.evaluator(config, found.model, sharding.make_mesh(config.mesh), source)
    results = evaluator(found.variables)
    if args.out:
        shown = OVERLAYS if args.overlays is None else args.overlays
        contents = task.evaluation_files(config, evaluator, found.variables, source, shown)
        if jax.process_index() == 0:
            write_all(Path(args.out), contents)
    if found.ema is not None:
        results |= evaluator(found.ema, prefix="val/ema_")
    tested = {"workdir": args.workdir, "step": found.step, "chosen": found.why}
    return (tested if args.workdir else {"weights": args.weights}) | results


def _number(value: Any) -> Any:
    """What JSON has a word for: a metric that has no value is null, as in metrics.jsonl."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_details(config: ConfigDict, args: argparse.Namespace) -> None:
    """Raises UserError for options that do not fit."""
    for name, given in (("out", bool(args.out)), ("overlays", args.overlays is not None)):
        if given and not tasks.of(config).details:
            raise UserError(
                f"--{name}: there is nothing more to say of task={config.task} than its metrics; leave it out"
            )
    if args.overlays is not None and not args.out:
        raise UserError("--overlays needs --out=DIR to be written to")


def options(parser: argparse.ArgumentParser) -> None:
    trained.add_options(parser)
    parser.add_argument(
        "--out",
        default="",
        metavar="DIR",
        type=os.path.expanduser,
        help="directory to write scores of classes and overlays to",
    )
    parser.add_argument("--overlays", type=whole(0), metavar="N", help=f"images in overlays.png (default {OVERLAYS})")


if __name__ == "__main__":
    sys.exit(cli.run(main, description=__doc__, options=options))
