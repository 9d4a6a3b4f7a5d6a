"""Tables of results, from numbers whose mean and standard deviation are easy."""

import csv
import io

import pytest

from lape_jax.sweeps import table
from lape_jax.sweeps.grid import Cell, Sweep

CELLS = [
    Cell("ViT", "default", "a.py:join=default", published=71.5),
    Cell("ViT", "LaPE", "a.py", (("model.pe", "learnable"), ("batch_size", "8")), 73.11),
    Cell("Swin", "default", "b.py"),
    Cell("Swin", "other", "b.py:x=1"),
]
SWEEP = Sweep("Models", "Table 9: elsewhere", CELLS, (0, 1, 2), ("other", "missing", "default"))


def top1(*values, **others):
    return {seed: {"val/top1": value, "val/loss": 2 * value, **others} for seed, value in enumerate(values)}


RESULTS = {
    CELLS[0]: top1(70.0, 72.0, 77.0),  # mean 73, squared deviations 9 + 1 + 16 = 26, / 2 = 13
    CELLS[1]: {4: {"error": "no, it\nfailed"}, **top1(80.0), 2: {"error": "a"}, 3: {"error": "a"}},
    CELLS[2]: {0: {"error": "a, b"}},
}


def test_summary():
    assert table.summary(RESULTS[CELLS[0]]) == (3, 73, pytest.approx(13**0.5))
    n, mean, std = table.summary(RESULTS[CELLS[1]])
    assert (n, mean, std != std) == (1, 80, True)
    assert table.summary(RESULTS[CELLS[2]])[0] == 0
    assert [str(table.summary(results)) for results in RESULTS.values()] == ["73.00 ± 3.61", "80.00", "failed"]
    assert table.values(RESULTS[CELLS[0]]) == [70, 72, 77]


def test_markdown():
    assert table.markdown(SWEEP, RESULTS, ["`the command`", "more"]) == (
        "|  | other | default | LaPE |\n"
        "|---|---|---|---|\n"
        "| ViT |  | 73.00 ± 3.61 (71.50) | 80.00 (73.11) |\n"
        "| Swin | - | failed |  |\n"
        "\n"
        "Models: top-1 in %, mean ± standard deviation over 1 to 3 seeds; in brackets what the LaPE paper reports "
        "(Table 9: elsewhere).\n"
        "\n"
        "`the command`\n"
        "\n"
        "more\n"
        "\n"
        "- ViT x LaPE, seed 4: no, it failed\n"
        "- ViT x LaPE, seeds 2, 3: a\n"
        "- Swin x default, seed 0: a, b\n"
    )


@pytest.mark.parametrize(
    ("results", "seeds"),
    [
        ({}, "of one seed"),
        ({CELLS[2]: top1(1.0)}, "of one seed"),
        ({CELLS[2]: top1(1.0, 2.0), CELLS[3]: {0: {"error": ""}}}, "mean ± standard deviation over 2 seeds"),
    ],
)
def test_which_seeds_the_numbers_are_of(results, seeds):
    text = table.markdown(SWEEP._replace(source=""), results)
    assert f"\n\nModels: {'top-1' if results else 'score'} in %, {seeds}.\n" in text


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_of_cells():
    found = rows(table.cells_csv(RESULTS))
    assert [row["row"] for row in found] == ["ViT", "ViT", "Swin"]
    assert float(found[0].pop("std")) == pytest.approx(13**0.5)
    assert found[0] == {
        "row": "ViT",
        "column": "default",
        "n": "3",
        "mean": "73.0",
        "published": "71.5",
        "config": "a.py:join=default",
        "overrides": "",
    }
    assert (found[1]["n"], found[1]["mean"], found[1]["std"]) == ("1", "80.0", "")
    assert found[1]["overrides"] == "model.pe=learnable batch_size=8"
    assert (found[2]["n"], found[2]["mean"], found[2]["std"], found[2]["published"]) == ("0", "", "", "")


def test_csv_of_seeds():
    found = rows(table.seeds_csv(RESULTS))
    assert [(row["row"], row["column"], row["seed"]) for row in found] == [
        *(("ViT", "default", seed) for seed in "012"),
        *(("ViT", "LaPE", seed) for seed in "4023"),
        ("Swin", "default", "0"),
    ]
    assert list(found[0]) == ["row", "column", "seed", "val/loss", "val/top1", "error"]
    assert found[1]["val/top1"] == "72.0"
    assert found[1]["val/loss"] == "144.0"
    assert found[1]["error"] == ""
    assert (found[3]["val/top1"], found[3]["error"]) == ("", "no, it\nfailed")
