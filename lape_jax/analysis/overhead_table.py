"""The numbers of `lape_jax.analysis.overhead` as a table in Markdown, beside those of the paper; as CSV and as JSON."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lape_jax.analysis.overhead import Cost, Program, quartiles, ratios


class Report(NamedTuple):
    """What a table shows."""

    about: Mapping[str, Any]  # under which conditions: "model", "batch", "device", ...
    costs: Sequence[Cost]  # the default joining first
    notes: Sequence[str]  # on what is missing


class Published(NamedTuple):
    """What the paper says, of the default joining and of LaPE."""

    hardware: str
    parameters: tuple[int, int]
    megabytes: tuple[int, int]  # of training
    seconds: tuple[int, int]  # of an epoch of ImageNet-1K


# Yu et al., ICCV 2023, Tables 5 and 6; numbers of parameters by the authors' code, with which Table 5 agrees.
PAPER = {
    "deit_ti": Published("4 V100, 256 images each", (5_717_416, 5_722_024), (10799, 10822), (410, 412)),
    "deit_s": Published("4 V100, 256 images each", (22_050_664, 22_059_880), (18051, 18073), (511, 516)),
    "deit_b": Published("8 V100, 128 images each", (86_567_656, 86_586_088), (19489, 19537), (588, 590)),
}


def markdown(report: Report) -> str:
    """The table with a column for each joining, under its conditions; then notes, and the paper's numbers."""
    about = dict(report.about)
    model = about.pop("model")
    conditions = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [f"{model}, {conditions}. Ratios (1.0000x) are to the default joining.", ""]
    lines += _table([(model, *(cost.joining for cost in report.costs)), *_rows(report.costs)])
    lines += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    found = published(report)
    if found:
        head = (f"published (Yu et al., ICCV 2023, Tables 5 and 6: {found.hardware})", "default", "lape")
        rows = zip(("parameters", "train step: memory, MB", "an epoch, s"), found[1:], strict=True)
        lines += ["", *_table([head, *((name, *_by_default(values, "{:,}")) for name, values in rows)])]
    return "\n".join(lines) + "\n"


def published(report: Report) -> Published | None:
    """What the paper says of the model of that name, unless it has other sizes here."""
    found = PAPER.get(report.about["model"])
    return found if found and found.parameters[0] == report.costs[0].parameters else None


def _rows(costs: Sequence[Cost]) -> Iterator[tuple[str, ...]]:
    yield "parameters", *_by_default([cost.parameters for cost in costs], "{:,}")
    if any(cost.trained not in (None, cost.parameters) for cost in costs):
        yield "of them trained", *_by_default([cost.trained for cost in costs], "{:,}")
    for name in costs[0].programs:
        programs = [cost.programs.get(name) for cost in costs]
        for title, form, digits, value in (
            ("GFLOP per image", "{:.4g}", 4, lambda program: program.flops / 1e9),
            ("memory, MiB", "{:,.1f}", 4, lambda program: program.memory / 2**20),
            ("compiled in, s", "{:.1f}", 2, lambda program: program.compile_seconds),
        ):
            yield f"{name}: {title}", *_by_default([program and value(program) for program in programs], form, digits)
        yield from _times(name, programs)


def _times(name: str, programs: Sequence[Program | None]) -> Iterator[tuple[str, ...]]:
    default = programs[0]
    if not default.seconds:
        return
    times = [program and quartiles([1e3 * value for value in program.seconds]) for program in programs]
    yield f"{name}: time, ms (quartiles)", *(_spread(found, "{:.4g}") for found in times)
    by_default = [program and ratios(program.seconds, default.seconds) for program in programs[1:]]
    copy = f"a copy: {_spread(ratios(default.copy, default.seconds), '{:.3f}x')}" if default.copy else "1"
    yield f"{name}: time by the default's (quartiles)", copy, *(_spread(found, "{:.3f}x") for found in by_default)


def _by_default(values: Sequence[int | float | None], form: str, digits: int = 4) -> list[str]:
    default, *others = values
    rest = ["-" if value is None else f"{form.format(value)}, {value / default:.{digits}f}x" for value in others]
    return [form.format(default), *rest]


def _spread(found: tuple[float, float, float] | None, form: str) -> str:
    if found is None:
        return "-"
    low, middle, high = map(form.format, found)
    return f"{middle} ({low} to {high})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *rest]


def records(report: Report) -> list[dict[str, Any]]:
    """A flat dictionary for each joining and program, with the conditions in each; None where there is no number."""
    found = []
    for cost in report.costs:
        for name, program in cost.programs.items():
            default = report.costs[0].programs[name]
            ran = bool(program.seconds)
            times = quartiles(program.seconds) if ran else (None,) * 3
            by_default = ratios(program.seconds, default.seconds) if ran else (None,) * 3
            found.append(
                {
                    **report.about,
                    "joining": cost.joining,
                    "program": name,
                    "parameters": cost.parameters,
                    "trained": cost.trained,
                    "flops_per_image": program.flops,
                    "memory_bytes": program.memory,
                    "compile_seconds": program.compile_seconds,
                    **dict(zip(("seconds_q1", "seconds_median", "seconds_q3"), times, strict=True)),
                    **dict(zip(("ratio_q1", "ratio_median", "ratio_q3"), by_default, strict=True)),
                }
            )
    return found


def as_json(report: Report) -> str:
    """The `records` as "rows", the notes, and as "published" what the paper says or null."""
    found = published(report)
    contents = {"rows": records(report), "notes": list(report.notes), "published": found and found._asdict()}
    return json.dumps(contents, indent=1) + "\n"


def as_csv(report: Report) -> str:
    """The `records`, with a header."""
    rows, text = records(report), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FORMATS = {".md": markdown, ".csv": as_csv, ".json": as_json}  # by what a file's name ends in
