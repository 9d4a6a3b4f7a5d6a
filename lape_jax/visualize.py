"""Figures and numbers of what models have made of their position embeddings.

    python -m lape_jax.visualize --workdir DIR [DIR ...] --out=DIR [--step=last|best|N] [--images=N] [--overlays=N]
    python -m lape_jax.visualize --weights=FILE --model=NAME [--model.KEY=VALUE ...] --out=DIR
    both: [--token=ROW|centre] [--layers=2-8] [--eps=1e-5]
    python -m lape_jax.visualize --workdir DIR [DIR ...] --out=DIR [--attention=class|centre|ROW] [--positions]
                                 [--layers=2-8] [--images=N] [--overlays=N] [--step=last|best|N]

Writes to --out, as PNG and as PDF, a row or line for each run (see `lape_jax.analysis.study`):
    correlation_token     cosine similarity of one position to all others, by layer (the paper's figures 1, 3, 4)
    correlation_overall   the same for all tokens
    locality              by layer: how far the similarity reaches, how two-dimensional it is, the size of the position
    lambda                by layer: lambda_1 to 3 of equation 7, and tokens by position; of runs, which have images, but
                          for those of a ViT-Adapter
    overlays              of runs that segment or detect, if there are images: --overlays=N of them (8), true maps or
                          objects and predicted ones
and numbers.npz, all of it as arrays, whose keys `lape_jax.analysis.study` lists. Prints a table for each run.

With --attention or --positions it writes these instead, of runs whose tokens all attend to all:
    attention_R_I         where a token of image I looks, in run R: by layer and head, and rollout; --overlays=N images
                          (4). It is the class token if there is one, else the centre; --attention=ROW is a patch.
                          attention.npz has all weights, see `lape_jax.analysis.attention_figures`
    shares                by layer, how much of the attention logits comes from tokens, from positions, and from both,
                          see `lape_jax.analysis.attention`; also as CSV

Layers are numbered from 1. --token is a patch's number, row by row from 0; without it the centre. --eps is that of the
LayerNorms that the maps see the table through, by default the one of the authors' script; the models' own may differ.
--images: so many validation images are measured on (default 256; 0 for none); of images to segment it is the window in
the middle. Of a workdir the best checkpoint is taken, or the newest if none was evaluated; of a file of weights what
cannot be read off it must be said, as for `python -m lape_jax.convert`.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax import cli, tasks
from lape_jax.analysis import attention, attention_figures
from lape_jax.analysis.activations import unmeasurable
from lape_jax.analysis.effective_pe import SCRIPT_EPS
from lape_jax.analysis.study import Study, distinct, distinct_labels, render, study, text
from lape_jax.augment.photometric import normalise
from lape_jax.config.options import finite, whole
from lape_jax.errors import UserError
from lape_jax.port import files
from lape_jax.tasks.task import OVERLAYS, Candidate, Spread
from lape_jax.train import comparison, weights_file

IMAGES = 256  # validation images that runs are measured on, unless so many are asked for
LOOKS = 4  # images whose attention is drawn, unless so many are asked for


def main(argv: Sequence[str]) -> None:
    args, settings = parse(argv)
    comparison.check(args, "--model=NAME")
    if args.workdir and (args.model or settings):
        raise UserError("a run says itself which model it has trained: leave out --model")
    if args.weights and (args.images, args.overlays) != (None, None):
        raise UserError("--images and --overlays are of a run: leave them out with --weights")
    for name, given, count in (("attention", args.attention, "overlays"), ("positions", args.positions, "images")):
        if given and getattr(args, count) == 0:
            raise UserError(f"--{name} looks at images: --{count}=0 leaves none")
    if args.weights and (args.attention or args.positions):
        raise UserError("--attention and --positions look at the images of a run: leave them out with --weights")
    contents, studies = {}, []
    if args.weights:
        studies = [of_weights(args.weights, args.model, settings, args.eps)]
    elif args.attention or args.positions:
        contents = look(args)
    else:
        count = IMAGES if args.images is None else args.images
        runs = [comparison.load(path, args.step) for path in args.workdir]
        studies = distinct([of_run(run, count, args.eps) for run in runs], args.workdir)
        overlays = OVERLAYS if args.overlays is None else args.overlays
        shown = overlays if count else 0
        contents = comparisons({one.label: run for one, run in zip(studies, runs, strict=True)}, shown)
    contents = (render(studies, args.eps, args.token, args.layers) if studies else {}) | contents
    files.write_all(Path(args.out), contents)
    print("\n\n".join([*map(text, studies), f"{args.out}: {', '.join(contents)}"]))


def look(args: argparse.Namespace) -> dict[str, bytes]:
    """Files by name: where runs look, and what makes them."""
    runs = [comparison.load(path, args.step) for path in args.workdir]
    labels = distinct_labels([comparison.label(run) for run in runs], args.workdir)
    labelled = dict(zip(labels, runs, strict=True))
    contents = {}
    if args.attention:
        count = LOOKS if args.overlays is None else args.overlays
        shown = {
            name: attention_figures.Looking(
                run.model, run.variables, np.concatenate(list(validation_images(run, count)))
            )
            for name, run in labelled.items()
        }
        contents |= attention_figures.maps(shown, args.attention, args.layers)
    if args.positions:
        count = IMAGES if args.images is None else args.images
        contents |= attention_figures.shares(
            {
                name: attention.shares(run.model, run.variables, validation_images(run, count))
                for name, run in labelled.items()
            }
        )
    return contents


def of_weights(path: str, name: str, settings: dict[str, Any], eps: float) -> Study:
    """The weights in a file, for a model called `name`."""
    found = weights_file.of_name(path, name, settings)
    model = found.model
    return study(f"{found.name}, {model.joining}, {model.pe}", model, found.variables, eps=eps)


def of_run(run: Candidate, count: int, eps: float) -> Study:
    """A run, measured on `count` of its validation images, if that is possible; if not, that is said."""
    reason = unmeasurable(run.model) if count else ""
    if reason:
        print(f"not measured on images: {reason}")
    images = validation_images(run, count) if count and not reason else None
    return study(comparison.label(run), run.model, run.variables, images, eps)


def validation_images(run: Candidate, count: int) -> Iterator[jax.Array]:
    """So many validation images of a run, from all over the set, as its model sees them, in batches."""
    config, task = run.config, tasks.of(run.config)
    try:
        source = Spread(task.open_alone(config, "val", run.classes), count)
    except UserError as error:
        raise UserError(f"{error} (--images=0 does without)") from error
    return (normalise(jnp.asarray(batch), config.data.mean, config.data.std) for batch in task.samples(config, source))


def comparisons(runs: Mapping[str, Candidate], count: int) -> dict[str, bytes]:
    """Files by name: what runs, by what they are called, make of `count` validation images of their task."""
    contents = {}
    for task in tasks.TASKS.values():
        own = {label: run for label, run in runs.items() if tasks.of(run.config) is task}
        if own and count:
            contents |= task.comparison(own, count)
    return contents


def _token(text: str) -> int | None:
    """The number of a patch; None for the centre."""
    return None if text in ("", "centre") else whole(0)(text)


def _layers(text: str) -> list[int] | None:
    """The numbers in a text such as "2-8" or "1,4,7-9"."""
    found: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"is {text!r}: it must be numbers of layers such as 2-8 or 1,4,7-9")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found or None


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings of the model."""
    settings, rest = cli.split_settings(argv)
    parser = cli.Parser(prog="python -m lape_jax.visualize", description=__doc__)
    add = parser.add_argument
    comparison.add_options(parser)
    add("--model", default="", metavar="NAME", help="which model they are of, e.g. deit_ti")
    add("--token", type=_token, metavar="ROW", help="patch whose map is drawn (default: centre)")
    add("--layers", type=_layers, help="layers whose maps are drawn, such as 2-8 (default: all)")
    add("--overlays", type=whole(0), metavar="N", help=f"images in overlays.png (default {OVERLAYS})")
    add("--attention", nargs="?", default="", const=attention.AUTO, help="where class, centre or ROW looks")
    add("--positions", action="store_true", help="what makes the attention logits")
    add("--images", type=whole(0), metavar="N", help=f"validation images to measure on (default {IMAGES})")
    add("--eps", type=finite, default=SCRIPT_EPS, help="of the LayerNorms in the maps (default %(default)s)")
    return parser.parse_args(rest), settings


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
