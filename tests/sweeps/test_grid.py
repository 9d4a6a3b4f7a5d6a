"""The sweeps that are shipped: every cell is a run that can be made, beside the numbers of the paper."""

from unittest import mock

import jax
import pytest

from lape_jax import cli
from lape_jax.errors import UserError
from lape_jax.nn.pe_norm import PE_NORMS
from lape_jax.sweeps import grid as sweeps
from lape_jax.sweeps import runs as sweep_runs
from lape_jax.sweeps import seeds
from lape_jax.sweeps.grid import Cell, Sweep
from lape_jax.train import setup
from lape_jax.train.writers import Console
from tests import quick, runs

CONFIGS = runs.ROOT / "configs"
TABLES = ("table7", "table8", "table9")
SHIPPED = [
    *(("digits", table) for table in ("table1", "table2", *TABLES)),
    *(("deit_ti", table) for table in ("table1", "table1_distilled", *TABLES)),
    *((f"vit_lite_{name}", table) for name in ("cifar10", "cifar100") for table in ("table2", *TABLES)),
]
JOINS = ("default", "shared", "unshared", "LaPE (sharing)", "LaPE")
ENDS = ("default", "LaPE")
CLASSES = {"digits": 10, "deit_ti": 1000, "vit_lite_cifar10": 10, "vit_lite_cifar100": 100}


def load(file, arg):
    return cli.call_config_file(f"{CONFIGS / file}.py:{arg}", "sweep", Sweep)


def config_of(cell, *overrides):
    return cli.load_config(str(CONFIGS / cell.config), "", [*cell.overrides, *overrides])


def published(file, arg):
    return {(cell.row, cell.column): cell.published for cell in load(file, arg).cells}


@pytest.mark.parametrize("debug", quick.first(1, [False, True]))
@pytest.mark.parametrize(("file", "arg"), SHIPPED)
def test_every_cell_is_a_run_that_can_be_made(file, arg, debug, tmp_path):
    sweep = load(file, f"{arg},debug" if debug else arg)
    cells = [(cell, config_of(cell)) for cell in sweep.cells]
    jobs = sweep_runs.prepare(cells, sweep.seeds, tmp_path)  # no two are the same
    assert len({job.directory for job in jobs}) == len(cells)
    for _, config in cells:
        model = setup.build_model(config, num_classes=10 if debug else CLASSES[file])
        setup.check_training(config, model)
        assert file != "digits" or (not debug and arg in TABLES) or model.param_shapes()  # takes its time


def test_table_7():
    expected = {
        ("RPE", "default"): 72.82,
        **{("1-D sin", c): v for c, v in zip(JOINS, (67.70, 70.66, None, 72.22, 72.52), strict=True) if v},
        **{("2-D sin", c): v for c, v in zip(JOINS, (71.46, 71.47, None, 72.49, 72.68), strict=True) if v},
        **{("learnable", c): v for c, v in zip(JOINS, (71.54, 72.00, 71.90, 72.86, 73.11), strict=True) if v},
    }
    for file in CLASSES:
        assert published(file, "table7") == expected
        sweep = load(file, "table7")
        assert sweep.row_names == ["RPE", "1-D sin", "2-D sin", "learnable"]
        assert sweep.column_names == list(JOINS)
        assert sweep.source == "Table 7: DeiT-Ti, 300 epochs of ImageNet-1K"


def test_what_table_7_trains():
    names = dict(zip(JOINS, ("default", "shared", "unshared", "lape_sharing", "lape"), strict=True))
    kinds = {"RPE": "relative", "1-D sin": "sincos_1d", "2-D sin": "sincos_2d", "learnable": "learnable"}
    for cell in load("digits", "table7,epochs=3").cells:
        config = config_of(cell)
        assert (config.model.pe, config.model.join) == (kinds[cell.row], names[cell.column])
        assert config.total_epochs == 3


def test_table_8():
    rows = {
        "default joining": (71.54, "layernorm"),
        "w": (70.67, "identity"),
        "scalar * w": (71.22, "scalar"),
        "vec * w": (71.13, "vector"),
        "vec * w + b": (70.85, "affine"),
        "Norm(w)": (72.56, "norm"),
        "scalar * Norm(w)": (72.49, "scalar_norm"),
        "vec * Norm(w)": (71.80, "vector_norm"),
        "vec * Norm(w) + b (LaPE)": (73.11, "layernorm"),
    }
    assert {kind for _, kind in rows.values()} == {*PE_NORMS}
    for file in CLASSES:
        sweep = load(file, "table8")
        assert published(file, "table8") == {(row, "top-1"): value for row, (value, _) in rows.items()}
        assert sweep.row_names == list(rows)
    for cell in load("digits", "table8").cells:
        model = setup.build_model(config_of(cell), num_classes=10)
        assert model.joining == ("default" if cell.row == "default joining" else "lape")
        assert model.pe_norm == rows[cell.row][1]


def test_table_9():
    rows = {
        "default": (72.14, "default", "token"),
        "default, GAP": (72.40, "default", "gap"),
        "LaPE": (72.94, "lape", "token"),
        "LaPE, GAP": (None, "lape", "gap"),
        "PVG": (73.17, "pvg", "gap"),
        "MPVG": (73.51, "mpvg", "gap"),
    }
    for file in CLASSES:
        expected = {("learnable", column): value for column, (value, _, _) in rows.items()}
        for rope in ("axial RoPE", "mixed RoPE"):
            expected |= {(rope, "default"): None, (f"learnable + {rope}", "default"): None}
            expected |= {(f"learnable + {rope}", "LaPE"): None}
        assert published(file, "table9") == expected
        assert load(file, "table9").paper == "MPVG"
    for cell in load("digits", "table9").cells:
        model = setup.build_model(config_of(cell), num_classes=10)
        assert (model.joining, model.pool) == rows[cell.column][1:]
        assert [("RoPE" in part) for part in cell.row.split(" + ")] == ["rope" in part for part in model.pe.split("+")]


def test_table_1():
    found = published("deit_ti", "table1") | published("deit_ti", "table1_distilled")
    rows = {
        "DeiT-Ti": (71.54, 73.11),
        "DeiT-S": (80.00, 80.54),
        "DeiT-B": (81.64, 81.97),
        "T2T-ViT-7": (71.69, 71.92),
        "Swin-T, learnable": (80.92, 81.25),
        "Swin-T, RPE -> learnable + RPE": (81.12, 81.49),
        "Swin-S, learnable": (82.81, 83.26),
        "Swin-S, RPE -> learnable + RPE": (83.17, 83.39),
        "CeiT-Ti": (76.52, 76.87),
        "CeiT-S": (81.88, 82.12),
        "DeiT-Ti-distill": (74.16, 74.97),
        "DeiT-S-distill": (80.98, 81.48),
        "DeiT-B-distill": (83.05, 83.41),
    }
    assert found == {(row, column): v for row, pair in rows.items() for column, v in zip(ENDS, pair, strict=True)}
    pes = {str(cell): config_of(cell).model.get("pe") for cell in load("deit_ti", "table1").cells if "Swin" in cell.row}
    assert pes == {
        "Swin-T, learnable x default": "learnable",
        "Swin-T, learnable x LaPE": "learnable",
        "Swin-T, RPE -> learnable + RPE x default": "relative",
        "Swin-T, RPE -> learnable + RPE x LaPE": "learnable+relative",
        "Swin-S, learnable x default": "learnable",
        "Swin-S, learnable x LaPE": "learnable",
        "Swin-S, RPE -> learnable + RPE x default": "relative",
        "Swin-S, RPE -> learnable + RPE x LaPE": "learnable+relative",
    }


def test_table_2():
    rows = {
        "cifar10": {"ViT-Lite": (93.448, 94.290), "CVT": (94.302, 94.690), "CCT": (96.034, 96.530)},
        "cifar100": {"ViT-Lite": (74.984, 75.534), "CVT": (77.452, 78.052), "CCT": (80.928, 81.986)},
    }
    for data, models in rows.items():
        sweep = load(f"vit_lite_{data}", "table2")
        expected = {(row, c): v for row, pair in models.items() for c, v in zip(ENDS, pair, strict=True)}
        assert published(f"vit_lite_{data}", "table2") == expected
        assert list(sweep.seeds) == [121, 122, 123, 124, 125]
        assert {config_of(cell).data.name for cell in sweep.cells} == {data}


@pytest.mark.parametrize("arg", ["table1", "table2"])
def test_small_models_on_digits_stand_beside_nothing(arg):
    sweep = load("digits", arg)
    assert set(published("digits", arg).values()) == {None}
    assert sweep.source == ""
    assert list(sweep.seeds) == [0, 1, 2, 3, 4]


def test_models_of_digits():
    tables = [load("digits", arg).cells for arg in ("table1", "table2")]
    assert [{cell.row: config_of(cell).model.name for cell in cells} for cells in tables] == [
        {"ViT": "vit_micro", "Swin": "swin_t", "CeiT": "ceit_ti"},
        {"ViT-Lite": "vit_lite_6_4", "CVT": "cvt_6_4", "CCT": "cct_6_3x1"},
    ]
    with pytest.raises(UserError, match=r"config argument model: 'swin' is not one of vit_micro.*mean 'swin_t'"):
        runs.load(f"{CONFIGS}/digits.py:model=swin")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("arg", ["table1", "table2"])
def test_small_models_on_digits_train_together(arg, number, tmp_path):
    cell = load("digits", arg).cells[number]
    config = config_of(cell, ("total_steps", "1"), ("warmup_steps", "0"), ("batch_size", "8"))
    with mock.patch.object(jax, "jit", quick.jit), mock.patch.object(seeds, "_RUNS_ONCE", quick.COMPILER_OPTIONS):
        results = seeds.train(config, (0, 1), tmp_path, Console(enabled=False))
    assert [metrics["val/examples"] for metrics in results.values()] == [359, 359]


def test_order_of_rows_and_columns():
    cells = [Cell("b", "y", ""), Cell("b", "x", ""), Cell("a", "z", ""), Cell("b", "w", "")]
    sweep = Sweep("", "", cells, (0,), ("x", "absent", "z"))
    assert sweep.row_names == ["b", "a"]
    assert sweep.column_names == ["x", "z", "y", "w"]


@pytest.mark.parametrize(
    ("arg", "error"),
    [
        ("tabel7", "sweep 'tabel7' is not one of table1, table2, table7, table8, table9 .did you mean 'table7'"),
        ("", "sweep '' is not one of table1"),
        ("table7,seed=3", "sweep 'table7,seed=3': the seeds of a sweep are given by --seeds"),
    ],
)
def test_sweeps_that_there_are_not(arg, error):
    with pytest.raises(UserError, match=error):
        load("digits", arg)


def test_an_argument_that_a_cell_gives_itself():
    cell = load("digits", "table7,join=lape").cells[0]
    with pytest.raises(UserError, match="config argument 'join' is given twice"):
        config_of(cell)


def test_models_without_published_numbers():
    sweep = sweeps.paper(
        "x", "digits.py", models={"x": {"A": sweeps.Model("a.py", args="b=1"), "B": sweeps.Model("b.py")}}
    )
    assert [cell.config for cell in sweep.cells] == [
        "a.py:b=1,join=default",
        "a.py:b=1,join=lape",
        "b.py:join=default",
        "b.py:join=lape",
    ]
