"""What a frozen model knows: classes and places, read off the tokens of each layer, without training the model.

    python -m lape_jax.probe --workdir DIR [DIR ...] --out=DIR [--step=last|best|N] [--config.key=value ...]
    python -m lape_jax.probe --weights=FILE --config=FILE.py --out=DIR [--config.key=value ...]
    both: [--images=N] [--shots=1,5,10]

Images and classes are those of a run's own data, or of the config: any data set that can be classified, whatever the
model was trained for. With --weights, classes and image size are read off the file; if the data's image size is another
one, position tables are interpolated. Features are those of N training images from all over the set (default 10000; 0
for all), and of as many validation images: the class token and the mean of the patches after each block, and what the
head sees. They are kept in --out, and the same command takes them from there.

Prints, and writes to --out:
    probe.csv        accuracy in percent of kNN, of a linear probe with the L2 that was chosen, and from few images of
                     each class, see `lape_jax.analysis.probes`; probe.png and .pdf by layer
    places.csv       how well row and column of a patch can be read off its token, by layer, see
                     `lape_jax.analysis.position_probe`; places.png and .pdf
The same command gives the same numbers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lape_jax import cli
from lape_jax.analysis import plots, position_probe, probes
from lape_jax.analysis.study import distinct_labels
from lape_jax.config.options import whole
from lape_jax.port import about, files
from lape_jax.port.hub import local
from lape_jax.tasks import config as configs
from lape_jax.tasks.task import Candidate
from lape_jax.train import comparison, trained, weights_file
from lape_jax.train.frozen_features import see, sized


def main(argv: Sequence[str]) -> None:
    args, overrides = parse(argv)
    probes.sklearn()  # says at once if it is missing
    out = Path(args.out)
    files.write_all(out, {})
    names = args.workdir or [args.weights]
    models = [of_run(path, args.step, overrides) for path in args.workdir] or [of_weights(args, overrides)]
    labels = distinct_labels([comparison.label(one) for one in models], names)
    known, read = {}, {}
    for label, one in zip(labels, models, strict=True):
        train, val = see(one, args.images, out)
        known[label] = probes.probe(train.features, val.features, (train.classes, val.classes), args.shots)
        read[label] = position_probe.read(train.products, val.products)
        print(f"{label}\n{probes.text(known[label])}\n\n{position_probe.text(read[label])}\n", flush=True)
    figures = {"probe": probes.figure(known), "places": position_probe.figure(read)}
    contents = {"probe.csv": probes.table(known).encode(), "places.csv": position_probe.table(read).encode()}
    contents |= {f"{name}.{form}": plots.render(x, form) for name, x in figures.items() for form in plots.FORMATS}
    files.write_all(out, contents)
    print(f"{out}: {', '.join(contents)}")


def of_run(path: str, step: trained.Which, overrides: list[tuple[str, str]]) -> Candidate:
    """A run, with the data that the overrides make of its own."""
    run = comparison.load(path, step)
    configs.override(run.config, overrides)
    return sized(run)


def of_weights(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> Candidate:
    """The weights in a file, which say themselves, or by the config, what model they are of."""
    config = cli.load_config(args.config, "", overrides)
    here = local(args.weights)
    told = about.read(here)
    settings = {key: value for key, value in config.model.to_dict().items() if value != "auto"}
    name = settings.pop("name")
    found = weights_file.of_name(here, "" if told else name, {} if told else settings)
    if told and told.mean:
        config.data.mean, config.data.std = told.mean, told.std
    return sized(Candidate(config, found.model, found.variables, ()))


def _shots(text: str) -> list[int]:
    return [whole(1)(part) for part in text.split(",") if part]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The options, and the overrides of the config."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.Parser(prog="python -m lape_jax.probe", description=__doc__)
    comparison.add_options(parser, config=True)
    images = {"type": whole(0), "default": 10_000, "metavar": "N"}
    parser.add_argument("--images", help="of each split, 0 for all (default %(default)s)", **images)
    parser.add_argument("--shots", type=_shots, default="1,5,10", help="images of each class (default %(default)s)")
    args = parser.parse_args(rest)
    comparison.check(args, "--config=FILE.py")
    return args, overrides


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
