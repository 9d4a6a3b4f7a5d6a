"""Trains a table: several configs, each with several seeds.

    python -m lape_jax.sweep --config=FILE.py[:NAME,arg=value] --out=DIR [--seeds=0,1,2] [--config.key=value ...]

FILE.py has a function `sweep(arg) -> Sweep` (see lape_jax/sweeps/grid.py), which is given what follows the colon.
Options --config.key=value go to every run. The seeds of a cell train together, as one program on one device, where
their data lie on it (`lape_jax.sweeps.seeds`), and one after another where not. What fails does not keep the rest from
being trained; the exit code is then 2. The same command goes on with a sweep that was interrupted (SIGTERM and Ctrl-C
save a checkpoint first), and tries again what failed; with other --seeds it trains those that are not there, and the
table is of the seeds that it names.

DIR gets table.md, cells.csv, seeds.csv, table.png and table.pdf, renewed after every cell, and in CELL/seed_N the
workdir of every run.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lape_jax import atomic, cli
from lape_jax.analysis import plots
from lape_jax.config.schema import DURATIONS
from lape_jax.errors import UserError, listed
from lape_jax.sweeps import runs as sweep_runs
from lape_jax.sweeps import table
from lape_jax.sweeps.grid import Sweep
from lape_jax.train import workdir as workdirs
from lape_jax.train.signals import StopRequest
from lape_jax.train.writers import Console


def main(argv: list[str]) -> None:
    args, overrides = parse(argv)
    sweep = cli.call_config_file(args.config, "sweep", Sweep)
    seeds = args.seeds or list(sweep.seeds)
    out = Path(args.out)
    directory = Path(cli.find_config(args.config.partition(":")[0])).parent
    configs = [cli.load_config(str(directory / cell.config), "", [*cell.overrides, *overrides]) for cell in sweep.cells]
    labels = [_data(configs), f"`python -m lape_jax.sweep {shlex.join(argv)}`"]
    with workdirs.claim(out), StopRequest() as stop, contextlib.closing(Console()) as console:
        jobs = sweep_runs.prepare(list(zip(sweep.cells, configs, strict=True)), seeds, out)
        for number, job in enumerate(jobs, start=1):
            name = f"[{number}/{len(jobs)}] {job.cell}"
            if job.missing:
                console.line(f"{name}: seeds {', '.join(map(str, job.missing))}")
                finished = sweep_runs.train(job, console, stop)
                write(out, sweep, jobs, labels)
                if not finished:
                    if stop.received is signal.SIGINT:
                        raise KeyboardInterrupt
                    return console.summary(f"stopped; the same command goes on, in {out}")
            console.line(f"{name}: {table.summary(job.results)}{f', {job.speed}' if job.speed else ''}")
        write(out, sweep, jobs, labels)
        console.summary((out / "table.md").read_text().rstrip("\n"))
    failed = [str(job.cell) for job in jobs if job.missing]
    if failed:
        raise UserError(f"there were failures in {listed(failed)}: see {str(out / 'table.md')!r}")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The options, and the overrides of every config."""
    args, overrides = cli.parse(argv, __doc__, ("config", "out"), options)
    if args.workdir:
        raise UserError("a sweep has many workdirs, all in --out=DIR: leave out --workdir")
    for key, _ in overrides:
        if key == "seed" or key.startswith("distributed."):
            raise UserError(f"--config.{key} does not suit a sweep, which is one process and has its --seeds")
    return args, overrides


def write(out: Path, sweep: Sweep, jobs: Sequence[sweep_runs.Job], labels: Sequence[str]) -> None:
    """Writes the table in all its forms, as far as there are results; `labels` go below it."""
    results = {job.cell: job.results for job in jobs if job.results}
    rows = {row: {column: [] for column in sweep.column_names} for row in sweep.row_names}
    for cell, found in results.items():
        rows[cell.row][cell.column] = table.values(found)
    figure = plots.spread(rows, ylabel=f"{table.score_name(results)}, %", title=sweep.title)
    texts = {
        "table.md": table.markdown(sweep, results, labels),
        "cells.csv": table.cells_csv(results),
        "seeds.csv": table.seeds_csv(results),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {f"table.{form}": plots.render(figure, form) for form in plots.FORMATS}
    for name, content in contents.items():
        atomic.write(out / name, content)


def _data(configs: Sequence[ConfigDict]) -> str:
    """What the runs are trained on."""
    data = [config.data for config in configs]
    names = dict.fromkeys(d.name or Path(d.path).name or d.source for d in data)
    totals = [(config[f"total_{unit}"], unit) for config in configs for unit in DURATIONS["total"]]
    lengths = dict.fromkeys(f"{total:,} {unit}".replace(".0 ", " ") for total, unit in totals if total is not None)
    return f"Trained on {', '.join(names)} for {' or '.join(lengths)}."


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="", metavar="DIR", type=os.path.expanduser, help="directory of the results")
    parser.add_argument(
        "--seeds", default=(), type=_seeds, metavar="N,N", help="seeds, separated by commas, instead of the sweep's"
    )


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}: it must be whole numbers, separated by commas") from None
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**31 for seed in seeds):
        raise argparse.ArgumentTypeError(f"is {text!r}: seeds must differ, and lie between 0 and 2^31 - 1")
    return seeds


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
