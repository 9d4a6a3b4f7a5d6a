"""Converts weights between PyTorch, big_vision and lape_jax.

    python -m lape_jax.convert SRC DST --model=deit_ti [--to=torch|lape|big_vision|timm|hf|...] [--model.join=lape ...]
    python -m lape_jax.convert DIR DST [--step=N|last|best] [--to=torch|lape|big_vision|timm|hf|...]

SRC is a file (known by its content; of a checkpoint with several sets of weights that fit FILE:KEY, such as
checkpoint.pth.tar:state_dict_ema), or hf:OWNER/NAME on Hugging Face's hub; DIR the workdir of a run, of which the best
checkpoint is taken, or the newest if none was evaluated; DST a file (.npz, .safetensors), or with --to=hf a directory
for Hugging Face's `from_pretrained`. Whose names SRC has is recognised. Number of classes, joining method, learned
tables, class and distillation token, registers, layer scales, windows, patches, channels and image size are read off
the weights, as far as they tell, where --model.KEY=VALUE does not give them; all else is the model's. (A .safetensors
file that `convert` or `export` wrote says it all itself, and so does Hugging Face's config.json beside the weights:
--model is not needed.) They do not tell `pe_norm`, PEGs, RoPE that learns nothing, "shared" from "default" or
"lape_sharing" from "lape" (and, in a Swin, "pvg"); nor, in a PyTorch file, a sinusoid from a learned table, which under
our own names is not among the weights at all. Every weight must have its place: nothing is dropped (but what
pre-training leaves beside a backbone without head, which is said), made up or reshaped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lape_jax import cli, port
from lape_jax.errors import UserError, nearest
from lape_jax.port.contents import directory_weights
from lape_jax.port.params import flatten
from lape_jax.train import trained, weights_file

FORMATS = {
    "torch": "PyTorch",
    "lape": "lape_jax",
    "big_vision": "big_vision",
    "big_vision_stacked": "big_vision",
    "mmseg": "MMSegmentation",
    "timm": "timm",
    "torchvision": "torchvision",
    "hf": "Hugging Face",
}


def main(argv: Sequence[str]) -> None:
    args, settings = parse(argv)
    if args.to not in FORMATS:
        raise UserError(f"--to={nearest(args.to, FORMATS)}")
    if Path(args.src).is_dir() and not directory_weights(Path(args.src)):
        if args.model or settings:
            raise UserError("a run says itself which model it has trained: leave out --model")
        found = trained.of_run(Path(args.src), step=args.step)
        names = f"a run, step {found.step}, {found.why}"
    elif args.step is not None:
        raise UserError(f"--step is of a run, and {args.src} is none: leave it out")
    else:
        found = weights_file.of_name(args.src, args.model, settings)
        names = f"{FORMATS[found.format]}'s names"
    variables = jax.device_get(found.variables)
    port.save(args.dst, variables, found.model, format=args.to, metadata=found.texts())
    table(variables)
    print(f"{args.src} ({names}) -> {args.dst} ({FORMATS[args.to]}'s names): {describe(found.model)}")


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
    classes = f"{model.num_classes} classes" if model.num_classes else "no head"
    return f"{type(model).__name__} ({kind}{height} x {width} pixels, {classes}), {count:,} parameters"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings of the model."""
    settings, rest = cli.split_settings(argv)
    parser = cli.Parser(prog="python -m lape_jax.convert", description=__doc__)
    parser.add_argument("src", metavar="SRC", type=os.path.expanduser, help="weights, or workdir of a run")
    parser.add_argument("dst", metavar="DST", type=os.path.expanduser, help="file, or directory, to write")
    parser.add_argument("--model", default="", metavar="NAME", help="which model SRC holds, e.g. deit_ti")
    parser.add_argument("--to", default="torch", metavar="FORMAT", help=f"{' | '.join(FORMATS)} (default %(default)s)")
    trained.add_step(parser)
    return parser.parse_args(rest), settings


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
