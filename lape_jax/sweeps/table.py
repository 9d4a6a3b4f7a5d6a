"""The results of a sweep as a table: Markdown to read, CSV to compute with."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lape_jax import tasks
from lape_jax.sweeps.grid import Cell, Sweep

Results = Mapping[int, Mapping]  # of a cell: seed -> metrics, or {"error": why there are none}


class Summary(NamedTuple):
    """The score of a cell, over those of its seeds that have a result."""

    n: int
    mean: float  # NaN if n = 0
    std: float  # of the sample (divided by n - 1); NaN if n < 2

    def __str__(self) -> str:
        if not self.n:
            return "failed"
        return f"{self.mean:.2f}" if self.n == 1 else f"{self.mean:.2f} ± {self.std:.2f}"


def values(results: Results) -> list[float]:
    """The score of all seeds that have one."""
    found = [metrics for metrics in results.values() if "error" not in metrics]
    return [metrics[next(name for name in tasks.scores() if name in metrics)] for metrics in found]


def score_name(results: Mapping[Cell, Results]) -> str:
    """What `values` are called; "score" if there are none."""
    names = {name for found in results.values() for metrics in found.values() for name in metrics}
    return next((shown for name, shown in tasks.scores().items() if name in names), "score")


def summary(results: Results) -> Summary:
    found = values(results)
    mean = statistics.fmean(found) if found else math.nan
    return Summary(len(found), mean, statistics.stdev(found) if len(found) > 1 else math.nan)


def markdown(sweep: Sweep, results: Mapping[Cell, Results], labels: Sequence[str] = ()) -> str:
    """A table of rows and columns, each place "mean ± standard deviation" over the seeds and, in brackets, what was
    published; "-" where nothing was trained so far. Below it what the numbers are, and what failed.

    Args:
        results: what the cells that were trained came to.
        labels: paragraphs to put below, such as the command.
    """
    columns = sweep.column_names
    places = {(cell.row, cell.column): cell for cell in sweep.cells}
    lines = [f"| {' | '.join(['', *columns])} |", f"|{'---|' * (len(columns) + 1)}"]
    for row in sweep.row_names:
        shown = [_place(places.get((row, column)), results) for column in columns]
        lines.append(f"| {' | '.join([row, *shown])} |")
    caption = f"{sweep.title}: {score_name(results)} in %, {_over(results)}"
    if sweep.source:
        caption += f"; in brackets what the {sweep.paper} paper reports ({sweep.source})"
    paragraphs = ["\n".join(lines), f"{caption}.", *labels, "\n".join(_failures(results))]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _over(results: Mapping[Cell, Results]) -> str:
    """Which seeds the numbers are of."""
    counts = sorted({summary(found).n for found in results.values()} - {0})
    if counts in ([], [1]):
        return "of one seed"
    return f"mean ± standard deviation over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def _place(cell: Cell | None, results: Mapping[Cell, Results]) -> str:
    if cell is None:
        return ""
    shown = str(summary(results[cell])) if cell in results else "-"
    return shown if cell.published is None else f"{shown} ({cell.published:.2f})"


def _failures(results: Mapping[Cell, Results]) -> list[str]:
    """What went wrong, and with which seeds."""
    lines = []
    for cell, found in results.items():
        reasons: dict[str, list[int]] = {}
        for seed, metrics in found.items():
            if "error" in metrics:
                reasons.setdefault(" ".join(metrics["error"].split()), []).append(seed)
        for reason, seeds in reasons.items():
            word = "seeds" if len(seeds) > 1 else "seed"
            lines.append(f"- {cell}, {word} {', '.join(map(str, seeds))}: {reason}")
    return lines


def seeds_csv(results: Mapping[Cell, Results]) -> str:
    """A line for each seed of each cell."""
    names = sorted({name for found in results.values() for metrics in found.values() for name in metrics} - {"error"})
    lines = [["row", "column", "seed", *names, "error"]]
    for cell, found in results.items():
        for seed, metrics in found.items():
            lines.append(
                [cell.row, cell.column, seed, *(metrics.get(name, "") for name in names), metrics.get("error", "")]
            )
    return _csv(lines)


def cells_csv(results: Mapping[Cell, Results]) -> str:
    """A line for each cell: n, mean and standard deviation of the score, and what was published."""
    lines = [["row", "column", "n", "mean", "std", "published", "config", "overrides"]]
    for cell, found in results.items():
        s = summary(found)
        numbers = [s.n, *("" if math.isnan(x) else x for x in (s.mean, s.std))]
        overrides = " ".join(f"{key}={text}" for key, text in cell.overrides)
        lines.append([cell.row, cell.column, *numbers, cell.published, cell.config, overrides])
    return _csv(lines)


def _csv(lines: Sequence[Sequence]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
