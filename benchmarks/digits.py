"""Digits, default joining against LaPE: accuracy over seeds, seconds from the command to the first step and the end.

    python benchmarks/digits.py [--seeds=5] [--out=runs/digits_seeds] [--config=configs/digits.py]

Every run is the command of the README in a process of its own, default and LaPE in turns. Finished runs in --out are
not repeated, only read (their times are then missing from the table).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

JOINS = ("default", "lape")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/digits_seeds")
    parser.add_argument("--config", default="configs/digits.py")
    args = parser.parse_args()
    rows = {join: [] for join in JOINS}
    for seed in range(args.seeds):
        for join in JOINS:
            workdir = Path(args.out) / f"{join}_{seed}"
            first, total = run(f"{args.config}:join={join},seed={seed}", workdir)
            metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
            top1 = [scalars["val/top1"] for scalars in metrics if "val/top1" in scalars][-1]
            rows[join].append((top1, first, total))
            print(
                f"{join:8} seed {seed}  top-1 {top1:6.2f} %  first step {first:5.1f} s  in all {total:5.1f} s",
                flush=True,
            )
    print("\n| joining | top-1 of each seed | mean | std | first step, s | in all, s |\n|---|---|---|---|---|---|")
    for join, runs in rows.items():
        top1, first, total = zip(*runs, strict=True)
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        print(
            f"| {join} | {', '.join(f'{value:.2f}' for value in top1)} | {statistics.mean(top1):.2f} | {spread:.2f} "
            f"| {statistics.median(first):.1f} | {statistics.median(total):.1f} |"
        )


def run(config, workdir):
    """Runs one training, and returns the seconds until its first step was made and until it ended."""
    if (workdir / "done").exists():
        return float("nan"), float("nan")
    command = [sys.executable, "-m", "lape_jax.main", f"--config={config}", f"--workdir={workdir}"]
    begin, first = time.perf_counter(), float("nan")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("first step"):
                first = time.perf_counter() - begin
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}")
    (workdir / "done").touch()
    return first, time.perf_counter() - begin


if __name__ == "__main__":
    main()
