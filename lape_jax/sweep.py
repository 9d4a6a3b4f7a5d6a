"""Trains a table: several configs, each with several seeds.

    python -m lape_jax.sweep --config=FILE.py[:NAME,arg=value] --out=DIR [--seeds=0,1,2] [--config.key=value ...]

FILE.py has a function `sweep(arg) -> Sweep` (see lape_jax/train/sweeps.py), which is given what follows the colon.
Options --config.key=value go to every run. The seeds of a cell train together, as one program on one device, where
their data lie on it (`lape_jax.train.seeds`), and one after another where not. What fails does not keep the rest from
being trained. The same command goes on with a sweep that was interrupted, tries again what failed, and adds seeds.

DIR gets table.md, cells.csv, seeds.csv, table.png and table.pdf, renewed after every cell, and in CELL/seed_N the
workdir of every run.
"""

import sys
from pathlib import Path

from lape_jax import cli
from lape_jax.analysis import plots
from lape_jax.errors import UserError
from lape_jax.train import sweep_runs, table
from lape_jax.train.sweeps import Sweep
from lape_jax.train.writers import Console

OPTIONS = {"out": "directory of the results", "seeds": "seeds, separated by commas, instead of the sweep's"}


def main(argv: list[str]) -> None:
    args, overrides = cli.parse(argv, __doc__, ("config", "out"), OPTIONS)
    if args.workdir:
        raise UserError("a sweep has many workdirs, all in --out=DIR: leave out --workdir")
    sweep = cli.call_config_file(args.config, "sweep", Sweep)
    seeds = _seeds(args.seeds) if args.seeds else list(sweep.seeds)
    out = Path(args.out).expanduser()
    console = Console()
    directory = Path(args.config.partition(":")[0]).parent
    configs = [cli.load_config(str(directory / cell.config), "", [*cell.overrides, *overrides]) for cell in sweep.cells]
    jobs = sweep_runs.prepare(list(zip(sweep.cells, configs, strict=True)), seeds, out)
    results = {job.cell: job.results for job in jobs if job.results}
    failed = []
    for number, job in enumerate(jobs, start=1):
        name = f"[{number}/{len(jobs)}] {job.cell.row} x {job.cell.column}"
        if job.missing:
            console.line(f"{name}: {len(job.missing)} seeds to train")
            if not sweep_runs.train(job, console):
                console.summary(f"stopped; the same command goes on, in {out}")
                return
            results[job.cell] = job.results
            write(out, sweep, results, argv)
        console.line(f"{name}: {table.summary(job.results)}{f', {job.speed}' if job.speed else ''}")
        failed += [name for metrics in job.results.values() if "error" in metrics]
    write(out, sweep, results, argv)
    console.summary((out / "table.md").read_text())
    if failed:
        raise UserError(f"{len(failed)} runs of {len(set(failed))} cells failed (see {out / 'table.md'})")


def write(out: Path, sweep: Sweep, results: dict, argv: list[str]) -> None:
    """Writes the table in all its forms."""
    command = f"`python -m lape_jax.sweep {' '.join(argv)}`"
    figure = plots.spread(
        {row: {c.column: table.values(r) for c, r in results.items() if c.row == row} for row in _rows(results)},
        ylabel="top-1, %",
        title=sweep.title,
    )
    texts = {
        "table.md": table.markdown(sweep, results, [command]),
        "cells.csv": table.cells_csv(results),
        "seeds.csv": table.seeds_csv(results),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {f"table.{form}": plots.render(figure, form) for form in plots.FORMATS}
    for name, content in contents.items():
        partial = out / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(out / name)


def _rows(results: dict) -> list[str]:
    return list(dict.fromkeys(cell.row for cell in results))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds is {text!r}: it must be whole numbers, separated by commas") from None
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"--seeds is {text!r}: seeds must differ, and lie between 0 and 2^31 - 1")
    return seeds


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
