"""What LaPE costs beside the default joining, in training and in inference: the paper's Tables 5 and 6 of any model.

    python -m lape_jax.overhead --model=deit_ti [--model.KEY=VALUE ...] [--batch=16] [--dtype=float32] [--repeats=15]
                                [--tpu=v5e:1x1] [--out=FILE.md] [--out=FILE.csv] [--out=FILE.json]

Prints parameters, FLOPs, memory, compilation and step time (what each of them is: `lape_jax.analysis.overhead`) of
three models that differ in nothing else: the default joining, LaPE (or what --model.join says), and LaPE folded to
constants for inference by `lape_jax.port.fold`. There are two programs: the train step, as a run makes it, with AdamW,
without augmentation and without a teacher; and inference on uint8 images.

They run on the first device that JAX has. With --tpu=TOPOLOGY, such as v5e:1x1 or v5e:2x4, libtpu compiles them for the
chips of that slice, without a TPU; then they do not run and have no times, and --batch is over all chips.
"""

import argparse
import functools
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from lape_jax import atomic, cli
from lape_jax.analysis import overhead
from lape_jax.analysis.overhead_table import FORMATS, Report, markdown
from lape_jax.config.options import whole
from lape_jax.errors import UserError
from lape_jax.train import programs

# Or libtpu waits for the metadata of a TPU VM, and for other processes that have loaded it.
AHEAD_OF_TIME = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> None:
    args, settings = parse(argv)
    devices = chips(args.tpu) if args.tpu else jax.devices()[:1]
    try:
        found, notes = overhead.candidates(args.model, settings | {"dtype": args.dtype})
        on = {"config": programs.bare_config(args.model, found[0].model), "batch": args.batch}
    except UserError as error:
        raise UserError(f"--model={args.model}: {error}") from error
    try:
        costs = overhead.measure(
            found,
            {
                overhead.TRAINING: functools.partial(programs.training, **on),
                "inference": functools.partial(programs.inference, **on),
            },
            batch=args.batch,
            devices=devices,
            repeats=0 if args.tpu else args.repeats,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"--batch={args.batch} needs more memory than the device has: use a smaller one") from error
    about = {
        "model": args.model,
        **{key: value for key, value in settings.items() if key not in ("join", "pe")},
        "pe": found[0].model.pe,
        "batch": args.batch,
        "dtype": args.dtype,
        "device": _device(devices, args.tpu),
        "jax": jax.__version__,
    }
    if args.tpu:
        notes.append("time: nothing ran, libtpu has compiled it ahead of time; memory is its plan for one chip")
    report = Report(about, costs, notes)
    print(markdown(report), end="")
    for path in args.out:
        atomic.write(path, FORMATS[path.suffix](report))


def _device(devices: Sequence[Any], topology: str) -> str:
    first = devices[0]
    if topology:
        return f"{topology} ({len(devices)} x {first.device_kind})"
    return f"{os.cpu_count()} CPU cores" if first.platform == "cpu" else first.device_kind


def chips(topology: str) -> list[Any]:
    """The devices of a TPU slice, as the compiler sees them."""
    if not importlib.util.find_spec("libtpu"):
        raise UserError(f"--tpu={topology} needs libtpu: pip install libtpu, or lape_jax with its extra 'tpu'")
    sides = re.fullmatch(r"\w+:(\d+(?:x\d+)*)", topology)
    if not sides:
        raise UserError(f"--tpu={topology}: it must be a kind of chip and the sides of a slice, such as v5e:2x4")
    jax.config.update("jax_platforms", "cpu")
    for name, value in AHEAD_OF_TIME.items():
        os.environ.setdefault(name, value)
    alone = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(map(int, sides[1].split("x"))) == 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--tpu={topology}: {str(error).splitlines()[0]}") from error


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings of the model."""
    settings, rest = cli.split_settings(argv)
    parser = cli.Parser(prog="python -m lape_jax.overhead", description=__doc__)
    parser.add_argument("--model", required=True, metavar="NAME", help="such as deit_ti")
    parser.add_argument("--batch", type=whole(1), default=16, metavar="N", help="images (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="to compute in (default %(default)s)")
    parser.add_argument("--repeats", type=whole(2), default=15, metavar="N", help="turns to time (default %(default)s)")
    parser.add_argument("--tpu", default="", metavar="TOPOLOGY", help="compile for a TPU slice instead of running")
    parser.add_argument(
        "--out",
        action="append",
        default=[],
        metavar="FILE",
        type=lambda text: Path(text).expanduser(),
        help="file to write: .md, .csv or .json",
    )
    args = parser.parse_args(rest)
    for path in args.out:
        if path.suffix not in FORMATS:
            raise UserError(f"--out={path} must end in {', '.join(FORMATS)}")
        if not path.parent.is_dir():
            raise UserError(f"--out={path}: there is no directory {path.parent}")
    if "dtype" in settings:
        raise UserError("--model.dtype is --dtype here")
    return args, settings


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # or a compilation may take no time
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
