"""Default joining against LaPE over seeds: accuracy, and seconds from the command to the first step and the end.

    python benchmarks/joinings.py --config=configs/digits.py --seeds 0 1 2 3 4 --out=runs/digits_seeds
    python benchmarks/joinings.py --config=configs/vit_lite_cifar10.py:path=DIR,source=arrays --seeds 121 122 \
        --out=runs/cifar10_seeds --jobs=2 --curves=cifar10.svg --config.model.depth=6

Every run is `python -m lape_jax.main` in a process of its own, default and LaPE in turns, `--jobs` at a time. Options
of the form --config.key=value go to every run. Interrupted runs continue, and finished ones in --out are only read
(their times are then missing from the table). --curves draws val/top1 and train/loss (needs matplotlib).
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

JOINS = ("default", "lape")
COLOURS = {"default": "#d55e00", "lape": "#0072b2"}  # distinct to the colour-blind as well (Okabe and Ito)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", default="runs/digits_seeds")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--curves", default="")
    args, options = parser.parse_known_args()
    cells = [(join, seed) for seed in args.seeds for join in JOINS]
    with ThreadPoolExecutor(args.jobs) as pool:
        times = list(pool.map(lambda cell: run(args, options, *cell), cells))
    rows, curves = {join: [] for join in JOINS}, {}
    for (join, seed), seconds in zip(cells, times, strict=True):
        curves[join, seed] = read(workdir(args, join, seed))
        rows[join].append((curves[join, seed]["val/top1"][-1][1], *seconds))
    print("\n| joining | top-1 of each seed | mean | std | first step, s | in all, s |\n|---|---|---|---|---|---|")
    for join, runs in rows.items():
        top1, first, total = zip(*runs, strict=True)
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        print(
            f"| {join} | {', '.join(f'{value:.2f}' for value in top1)} | {statistics.mean(top1):.2f} | {spread:.2f} "
            f"| {median(first)} | {median(total)} |"
        )
    if args.curves:
        draw(curves, args.curves)


def median(seconds):
    """Of those that were measured."""
    known = [s for s in seconds if not math.isnan(s)]
    return f"{statistics.median(known):.1f}" if known else ""


def workdir(args, join, seed):
    return Path(args.out) / f"{join}_{seed}"


def run(args, options, join, seed):
    """Runs one training, and returns the seconds until its first step was made and until it ended."""
    directory = workdir(args, join, seed)
    if (directory / "done").exists():
        return float("nan"), float("nan")
    separator = "," if ":" in args.config else ":"
    config = f"{args.config}{separator}join={join},seed={seed}"
    command = [sys.executable, "-m", "lape_jax.main", f"--config={config}", f"--workdir={directory}", *options]
    begin, first, line = time.perf_counter(), float("nan"), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("first step"):
                first = time.perf_counter() - begin
    if process.returncode or not line.startswith("done"):  # SIGTERM ends a run well, but before its time
        sys.exit(f"{' '.join(command)} ended early, with exit code {process.returncode}: {line.strip()}")
    (directory / "done").touch()
    total = time.perf_counter() - begin
    top1 = read(directory)["val/top1"][-1][1]
    print(f"{join:8} seed {seed}  top-1 {top1:6.2f} %  first step {first:5.1f} s  in all {total:5.1f} s", flush=True)
    return first, total


def read(directory):
    """{name: [(step, value), ...]} of a run's metrics."""
    series = {}
    for line in (directory / "metrics.jsonl").open():
        scalars = json.loads(line)
        for name, value in scalars.items():
            series.setdefault(name, []).append((scalars["step"], value))
    return series


def draw(curves, path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for panel, name, label in zip(
        panels, ("val/top1", "train/loss"), ("top-1 on the held-out images, %", "training loss"), strict=True
    ):
        for (join, _), series in curves.items():
            steps, values = zip(*series[name], strict=True)
            shown = "LaPE" if join == "lape" else join
            known = panel.get_legend_handles_labels()[1]
            panel.plot(steps, values, color=COLOURS[join], lw=1.2, label=None if shown in known else shown)
        panel.set(xlabel="step", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
