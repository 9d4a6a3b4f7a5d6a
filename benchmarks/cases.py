"""Programs compiled one by one for a chip that is not here, each in a process of its own; their results as JSON lines.

What tpu_compile.py and gpu_compile.py have in common.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GIB = 2**30


def options(script: str, about: str | None) -> argparse.ArgumentParser:
    """The options that such a script has."""
    own = ROOT / "benchmarks" / Path(script).stem
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", default=str(own.with_suffix(".md")))
    parser.add_argument("--results", default=str(own.with_suffix(".jsonl")))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def fill(
    args: argparse.Namespace, cases: Iterable[Any], script: str, environment: Mapping[str, str], say: Callable[..., str]
) -> dict[tuple, dict]:
    """The rows of all cases that are known, by case; those that --only asks for are measured where they are not.

    Each row is added to --results as soon as it is there.
    """
    results = Path(args.results)
    rows = map(json.loads, results.open()) if results.exists() else ()
    known = {tuple(row["case"]): row for row in rows if not row.get("failed")}
    for case in cases:
        if re.search(args.only, str(case)) and (args.again or tuple(case) not in known):
            known[tuple(case)] = row = {"case": case, **in_own_process(script, case, environment)}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(case, row.get("error") or say(row), sep=": ", flush=True)
    return known


def in_own_process(script: str, case: Any, environment: Mapping[str, str]) -> dict:
    """What the script's --case prints last, or {"error": why there is nothing}."""
    command = [sys.executable, script, f"--case={json.dumps(case)}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    asked = re.search(r"([\d.]+[GM])\)? (?:exceeds available HBM|of [\d.]+[GM] hbm)", done.stderr)
    if asked:
        return {"error": f"asks for {asked[1]}"}
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    return {"error": last[:200], "failed": True}


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    columns = tuple(columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *rows))
