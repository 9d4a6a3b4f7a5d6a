"""What LaPE costs, against counts by hand; and the table of it."""

import csv
import io
import json

import jax
import pytest

from lape_jax import models
from lape_jax.analysis import overhead, overhead_table
from lape_jax.analysis.overhead import Cost, Program
from lape_jax.errors import UserError
from tests import quick
from tests.analysis.models import SWIN, TINY, create, variables_of

# deit_ti of TINY's sizes: patches, class token, table, two blocks, final norm, head
TINY_COUNT = (8 * 8 * 3 + 1) * 32 + 32 + 5 * 32 + 2 * (2 * 64 + 33 * 96 + 33 * 32 + 33 * 128 + 129 * 32) + 64 + 33 * 5
FAMILY = {"width": 32, "depth": 2, "heads": 2, "image_size": 32}


@pytest.fixture(autouse=True)
def _no_compilation(monkeypatch):
    monkeypatch.setattr(overhead, "_initial", variables_of)


# ---- Counting --------------------------------------------------------------------------------------------------------


def test_parameters_by_hand():
    counts = {
        one.joining: overhead.parameters(one.model, one.variables) for one in overhead.candidates("deit_ti", TINY)[0]
    }
    assert counts == {
        "default": (TINY_COUNT, TINY_COUNT),
        "lape": (TINY_COUNT + 2 * 2 * 32,) * 2,
        # Two tables of five rows for one table and two biases.
        "folded": (TINY_COUNT + 5 * 32 - 2 * 32,) * 2,
    }


def test_a_sinusoid_is_not_learned():
    model = create("deit_ti", pe="sincos_2d", join="default")
    assert overhead.parameters(model, model.variable_shapes()) == (TINY_COUNT, TINY_COUNT - 5 * 32)


@pytest.mark.parametrize(
    ("name", "join", "total"),
    [
        ("t2t_vit_7", "default", 4_310_222),  # with its table, and the random features
        ("t2t_vit_7", "lape", 4_313_806),
        ("ceit_ti", "lape", 6_361_512),  # without its running statistics
        ("swin_t", "lape", 28_598_242),
        *(
            (name, join, published.parameters[i])
            for name, published in overhead_table.PAPER.items()
            for i, join in enumerate(("default", "lape"))
        ),
    ],
)
def test_published_counts(name, join, total):
    model = models.create(name, join=join)
    assert overhead.parameters(model, model.variable_shapes())[0] == total


def counted(one, batch):
    images = jax.ShapeDtypeStruct((batch, *one.model.input_shape), "float32")
    return overhead.flops(jax.jit(lambda v, x: one.model.apply(v, x)[0]).lower(one.variables, images))


def test_flops_by_hand():
    shapes = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 4), (4, 5)))
    assert overhead.flops(jax.jit(lambda a, b: a @ b + 1).lower(*shapes)) == 2 * 3 * 4 * 5 + 3 * 5


@pytest.mark.slow
def test_what_lape_adds_by_hand():
    """To each image: the PE in each layer and not in the stem; once for all images: the norms of the PE."""
    found = overhead.candidates("deit_ti", {**TINY, "depth": 3})[0]
    found = [one._replace(model=overhead.unrolled(one.model)) for one in found]
    default, lape, folded = ([counted(one, batch) for batch in (1, 2, 3)] for one in found)
    rows = 5 * 32
    more = [own - other for own, other in zip(lape, default, strict=True)]
    assert [more[1] - more[0], more[2] - more[1]] == [2 * rows] * 2
    assert 3 * 5 * rows < more[0] - 2 * rows < 3 * 12 * rows  # a LayerNorm takes about eight operations
    # Folding puts tables in the place of biases, and the stem adds nothing.
    assert [own - other for own, other in zip(folded, default, strict=True)] == [-rows, -2 * rows, -3 * rows]


@pytest.mark.slow
def test_every_layer_counts():
    blocks = {}
    for depth in (1, 2, 4):
        one = overhead.candidates("deit_ti", {**TINY, "depth": depth})[0][0]
        blocks[depth] = counted(one._replace(model=overhead.unrolled(one.model)), 1)
    assert blocks[4] - blocks[2] == pytest.approx(2 * (blocks[2] - blocks[1]), rel=1e-4)
    assert counted(one, 1) < blocks[2]  # a loop's body counts once
    assert overhead.unrolled(create("swin_t")).unroll == max(SWIN["depths"])


# ---- What is compared ------------------------------------------------------------------------------------------------

FOLDING = ("deit_ti_distilled", "t2t_vit_7", "vit_ti_16", "cct_7_3x1", "ceit_ti")


@pytest.mark.parametrize("name", quick.first(1, FOLDING))
def test_families_that_fold(name):
    found, notes = overhead.candidates(name, FAMILY)
    assert [one.joining for one in found] == [one.model.joining for one in found] == ["default", "lape", "folded"]
    assert notes == ["folded: for inference, its constants are not trained"]


def test_a_family_that_does_not_fold():
    found, notes = overhead.candidates("swin_t", SWIN)
    assert [one.joining for one in found] == ["default", "lape"]
    assert notes == ["folded: a Swin cannot be folded: only models of one width, such as ViTs, can"]


def test_another_joining_and_another_norm():
    found, notes = overhead.candidates("deit_ti", {**TINY, "join": "unshared"})
    assert [one.joining for one in found] == ["default", "unshared"]
    assert "has no PE norms to fold" in notes[0]
    found, _ = overhead.candidates("deit_ti", {**TINY, "pe_norm": "scalar"})
    assert [one.model.pe_norm for one in found[:2]] == ["layernorm", "scalar"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("regnety_160", {}, "model 'regnety_160': a RegNet has no position embedding, so there is nothing to compare"),
        ("deit_tj", {}, "did you mean 'deit_ti'"),
        ("deit_ti", {"join": "default"}, "join='default' is measured in any case: leave it out"),
        ("deit_ti", {"join": "folded"}, "join='folded' is measured in any case: leave it out"),
        ("deit_ti", {"pe": "relative"}, "pe='relative' has no table that LaPE could deliver: add one"),
        ("deit_ti", {"widht": 3}, "setting 'widht' is not one of .*did you mean 'width'"),
    ],
)
def test_nothing_to_compare(name, settings, message):
    with pytest.raises(UserError, match=message):
        overhead.candidates(name, settings)


def test_jax_without_a_cpu(monkeypatch):
    def devices(platform):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match="FLOPs are counted on JAX's CPU: add it to JAX_PLATFORMS=cpu"):
        overhead.measure([], {}, batch=1, devices=[], repeats=0)


# ---- Time ------------------------------------------------------------------------------------------------------------


def test_quartiles_by_hand():
    assert overhead.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2, 3, 4)
    assert overhead.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert overhead.ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == (1.5, 2, 2.5)  # of 2, 3 and 1: not of the medians


def test_turns():
    now, called = [0.0], []

    def call(name, seconds):
        def run():
            called.append(name)
            now[0] += seconds * (1 + len(called) // 3)  # the machine becomes slower

        return run

    found = overhead.in_turns([call("a", 1), call("b", 10), call("c", 100)], 2, clock=lambda: now[0])
    assert "".join(called) == "abc" + "abc" + "cba"
    assert found == [(2.0, 4.0), (20.0, 30.0), (300.0, 300.0)]


# ---- The table -------------------------------------------------------------------------------------------------------

TRAIN, INFER = overhead.TRAINING, "inference"
REPORT = overhead_table.Report(
    {"model": "deit_ti", "pe": "learnable", "batch": 8},
    [
        Cost(
            "default",
            1000,
            1000,
            {
                TRAIN: Program(3e9, 2**20, 10.0, (0.1, 0.2), (0.1, 0.22)),
                INFER: Program(1e9, 2**19, 5.0, (0.01, 0.02), (0.01, 0.02)),
            },
        ),
        Cost(
            "lape",
            1010,
            1010,
            {TRAIN: Program(3.003e9, 2**21, 12.0, (0.2, 0.2)), INFER: Program(1e9, 2**19, 5.0, (0.01, 0.04))},
        ),
        Cost("folded", 1200, None, {INFER: Program(1e9, 2**19, 4.0, (0.01, 0.03))}),
    ],
    ["folded: why not"],
)
TABLE = """\
deit_ti, pe learnable, batch 8. Ratios (1.0000x) are to the default joining.

| deit_ti | default | lape | folded |
|---|---|---|---|
| parameters | 1,000 | 1,010, 1.0100x | 1,200, 1.2000x |
| train step: GFLOP per image | 3 | 3.003, 1.0010x | - |
| train step: memory, MiB | 1.0 | 2.0, 2.0000x | - |
| train step: compiled in, s | 10.0 | 12.0, 1.20x | - |
| train step: time, ms (quartiles) | 150 (125 to 175) | 200 (200 to 200) | - |
| train step: time by the default's (quartiles) | a copy: 1.050x (1.025x to 1.075x) | 1.500x (1.250x to 1.750x) | - |
| inference: GFLOP per image | 1 | 1, 1.0000x | 1, 1.0000x |
| inference: memory, MiB | 0.5 | 0.5, 1.0000x | 0.5, 1.0000x |
| inference: compiled in, s | 5.0 | 5.0, 1.00x | 4.0, 0.80x |
| inference: time, ms (quartiles) | 15 (12.5 to 17.5) | 25 (17.5 to 32.5) | 20 (15 to 25) |
| inference: time by the default's (quartiles) | a copy: 1.000x (1.000x to 1.000x) | 1.500x (1.250x to 1.750x) \
| 1.250x (1.125x to 1.375x) |

- folded: why not
"""


def ahead_of_time(report):
    """The same as if nothing had run."""
    costs = [
        cost._replace(programs={name: p._replace(seconds=(), copy=()) for name, p in cost.programs.items()})
        for cost in report.costs
    ]
    return report._replace(costs=costs)


def test_markdown_by_hand():
    assert overhead_table.markdown(REPORT) == TABLE
    without = [line for line in TABLE.splitlines() if ": time" not in line]
    assert overhead_table.markdown(ahead_of_time(REPORT)).splitlines() == without


def test_the_papers_numbers_are_for_its_models_alone():
    own = overhead_table.PAPER["deit_ti"].parameters
    as_there = REPORT._replace(costs=[REPORT.costs[0]._replace(parameters=own[0], trained=own[0])])
    assert overhead_table.published(as_there).seconds == (410, 412)
    text = overhead_table.markdown(as_there)
    assert "| published (Yu et al., ICCV 2023, Tables 5 and 6: 4 V100, 256 images each) | default | lape |" in text
    assert "| train step: memory, MB | 10,799 | 10,822, 1.0021x |\n| an epoch, s | 410 | 412, 1.0049x |\n" in text
    assert overhead_table.published(REPORT) is None
    assert overhead_table.published(as_there._replace(about={"model": "ceit_ti"})) is None


def test_frozen_parameters_have_a_line():
    costs = [cost._replace(trained=cost.trained and cost.trained - 10) for cost in REPORT.costs]
    text = overhead_table.markdown(REPORT._replace(costs=costs))
    assert "| of them trained | 990 | 1,000, 1.0101x | - |" in text


def test_records_as_json_and_csv():
    rows = json.loads(overhead_table.as_json(REPORT))["rows"]
    places = [("default", TRAIN), ("default", INFER), ("lape", TRAIN), ("lape", INFER), ("folded", INFER)]
    assert [(row["joining"], row["program"]) for row in rows] == places
    assert rows[2] == {
        "model": "deit_ti", "pe": "learnable", "batch": 8, "joining": "lape", "program": TRAIN, "parameters": 1010,
        "trained": 1010, "flops_per_image": 3.003e9, "memory_bytes": 2**21, "compile_seconds": 12.0,
        "seconds_q1": 0.2, "seconds_median": 0.2, "seconds_q3": 0.2,
        "ratio_q1": 1.25, "ratio_median": 1.5, "ratio_q3": 1.75,
    }  # fmt: skip
    table = list(csv.DictReader(io.StringIO(overhead_table.as_csv(REPORT))))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == table
    assert overhead_table.records(ahead_of_time(REPORT))[0]["ratio_median"] is None
