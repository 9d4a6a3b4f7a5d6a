"""Sweeps: tables of trainings, and the tables of the LaPE paper among them.

A config file may have, beside `get_config(arg)`, a `sweep(arg) -> Sweep`. Published numbers: LaPE, ICCV 2023, Tables 1,
2, 7 and 8; those of tables 7 and 8 are of DeiT-Ti after 300 epochs of ImageNet-1K. Those of what is called table 9 here
are of the same from MPVG, AAAI 2025 (arXiv:2502.02919), one run each.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lape_jax.config import reading
from lape_jax.errors import UserError, nearest
from lape_jax.nn.join import BASELINE, JOINS, PUBLISHED

POSITIONS = {"relative": "RPE", "sincos_1d": "1-D sin", "sincos_2d": "2-D sin", "learnable": "learnable"}
POSITIONS |= {"rope_axial": "axial RoPE", "rope_mixed": "mixed RoPE"}
TABLE7 = {
    "relative": {"default": 72.82},
    "sincos_1d": {"default": 67.70, "shared": 70.66, "lape_sharing": 72.22, "lape": 72.52},
    "sincos_2d": {"default": 71.46, "shared": 71.47, "lape_sharing": 72.49, "lape": 72.68},
    "learnable": {"default": 71.54, "shared": 72.00, "unshared": 71.90, "lape_sharing": 72.86, "lape": 73.11},
}
TABLE8 = {
    "default joining": 71.54,
    "identity": 70.67,
    "scalar": 71.22,
    "vector": 71.13,
    "affine": 70.85,
    "norm": 72.56,
    "scalar_norm": 72.49,
    "vector_norm": 71.80,
    "layernorm": 73.11,
}
TABLE9 = {  # by PE, and by joining and pooling; of MPVG's Table 1 and Figure 5
    "learnable": {
        ("default", "token"): 72.14,
        ("default", "gap"): 72.40,
        ("lape", "token"): 72.94,
        ("lape", "gap"): None,
        ("pvg", "gap"): 73.17,
        ("mpvg", "gap"): 73.51,
    },
    "rope_axial": {("default", "token"): None},
    "learnable+rope_axial": {("default", "token"): None, ("lape", "token"): None},
    "rope_mixed": {("default", "token"): None},
    "learnable+rope_mixed": {("default", "token"): None, ("lape", "token"): None},
}
FORMULAS = {
    "identity": "w",
    "scalar": "scalar * w",
    "vector": "vec * w",
    "affine": "vec * w + b",
    "norm": "Norm(w)",
    "scalar_norm": "scalar * Norm(w)",
    "vector_norm": "vec * Norm(w)",
    "layernorm": "vec * Norm(w) + b (LaPE)",
}


class Cell(NamedTuple):
    """One place of the table: a config, to be trained with several seeds."""

    row: str
    column: str
    config: str  # FILE.py[:ARG] beside the config file that the sweep is in, as for --config
    overrides: tuple[tuple[str, str], ...] = ()  # (key, text) as in --config.key=text
    published: float | None = None  # what the paper reports for this place, in percent

    def __str__(self) -> str:
        return f"{self.row} x {self.column}"


class Sweep(NamedTuple):
    """A table of trainings; its rows come in the order of its cells, and so do columns that `columns` does not name."""

    title: str
    source: str  # what the published numbers are of; "" if there are none
    cells: Sequence[Cell]
    seeds: Sequence[int]
    columns: Sequence[str] = ()  # in their order; those that no cell is in are left out
    paper: str = "LaPE"  # whose numbers they are

    @property
    def row_names(self) -> list[str]:
        """The rows from top to bottom."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def column_names(self) -> list[str]:
        """The columns from left to right."""
        present = list(dict.fromkeys(cell.column for cell in self.cells))
        return [c for c in self.columns if c in present] + [c for c in present if c not in self.columns]


class Model(NamedTuple):
    """A row of tables 1 and 2: a model trained with the default joining and with LaPE."""

    config: str  # FILE.py of the sweep's directory
    default: float | None = None  # published
    lape: float | None = None
    args: str = ""  # of both
    default_pe: str = ""  # if the two have different PEs
    lape_pe: str = ""


TABLE1 = {
    "DeiT-Ti": Model("deit_ti.py", 71.54, 73.11),
    "DeiT-S": Model("deit_s.py", 80.00, 80.54),
    "DeiT-B": Model("deit_b.py", 81.64, 81.97),
    "T2T-ViT-7": Model("t2t_vit_7.py", 71.69, 71.92),
    "Swin-T, learnable": Model("swin_t.py", 80.92, 81.25, "pe=learnable"),
    "Swin-T, RPE -> learnable + RPE": Model("swin_t.py", 81.12, 81.49, "", "relative", "learnable+relative"),
    "Swin-S, learnable": Model("swin_s.py", 82.81, 83.26, "pe=learnable"),
    "Swin-S, RPE -> learnable + RPE": Model("swin_s.py", 83.17, 83.39, "", "relative", "learnable+relative"),
    "CeiT-Ti": Model("ceit_ti.py", 76.52, 76.87),
    "CeiT-S": Model("ceit_s.py", 81.88, 82.12),
}
DISTILLED = {
    "DeiT-Ti-distill": Model("deit_ti_distilled.py", 74.16, 74.97),
    "DeiT-S-distill": Model("deit_s_distilled.py", 80.98, 81.48),
    "DeiT-B-distill": Model("deit_b_distilled.py", 83.05, 83.41),
}
TABLE2 = {
    "cifar10": {
        "ViT-Lite": Model("vit_lite_cifar10.py", 93.448, 94.290),
        "CVT": Model("cvt_cifar10.py", 94.302, 94.690),
        "CCT": Model("cct_cifar10.py", 96.034, 96.530),
    },
    "cifar100": {
        "ViT-Lite": Model("vit_lite_cifar100.py", 74.984, 75.534),
        "CVT": Model("cvt_cifar100.py", 77.452, 78.052),
        "CCT": Model("cct_cifar100.py", 80.928, 81.986),
    },
}
CIFAR_SEEDS = (121, 122, 123, 124, 125)  # the paper's
SOURCES = {
    "table1": "Table 1: 300 epochs of ImageNet-1K",
    "table1_distilled": "Table 1: 300 epochs of ImageNet-1K",
    "table2": "Table 2: means of five seeds",
    "table7": "Table 7: DeiT-Ti, 300 epochs of ImageNet-1K",
    "table8": "Table 8: DeiT-Ti, 300 epochs of ImageNet-1K",
    "table9": "Table 1 and Figure 5: DeiT-Ti, 300 epochs of ImageNet-1K",
}


def paper(
    arg: str, file: str, *, seeds: Sequence[int] = (0,), models: Mapping[str, Mapping[str, Model]] | None = None
) -> Sweep:
    """The sweep that `arg` = "NAME,arg=value,..." names; what follows NAME goes to every config's `get_config`.

        table7   kinds of PE x joining methods, on the model of `file`
        table8   what normalises the PE, on the model of `file`
        table9   joining methods with a class token and with the mean over patches, PVG and MPVG among them; RoPE alone
                 and with a table; likewise
        NAME     models x {default, LaPE}, for each NAME of `models`

    Args:
        arg: what follows the config file, NAME first, see above.
        file: name of the config file that tables 7 to 9 vary.
        seeds: trained in each cell if the command names no others.
        models: rows by table.

    Raises:
        UserError: there is no such sweep, or `arg` gives a seed.
    """
    name, _, rest = arg.partition(",")
    if any(part.startswith("seed=") for part in reading.split(rest)):
        raise UserError(f"sweep {arg!r}: the seeds of a sweep are given by --seeds")
    models = models or {}
    source = SOURCES.get(name, "")
    if name == "table7":
        columns = [join.title for join in JOINS.values()]
        return Sweep("Position embedding x joining", source, _table7(file, rest), seeds, columns)
    if name == "table8":
        return Sweep("What LaPE does to the PE", source, _table8(file, rest), seeds)
    if name == "table9":
        return Sweep("PE x joining and pooling", source, _table9(file, rest), seeds, paper="MPVG")
    if name not in models:
        raise UserError(f"sweep {nearest(name, [*models, 'table7', 'table8', 'table9'])}")
    published = any(model.lape for model in models[name].values())
    return Sweep("Models x joining", source if published else "", _of_models(models[name], rest), seeds)


def _table7(file: str, rest: str) -> list[Cell]:
    return [
        Cell(POSITIONS[pe], JOINS[join].title, _config(file, f"pe={pe}", f"join={join}", rest), published=published)
        for pe, joins in TABLE7.items()
        for join, published in joins.items()
    ]


def _table8(file: str, rest: str) -> list[Cell]:
    default, lape = (_config(file, f"join={join}", rest) for join in (BASELINE, PUBLISHED))
    cells = [Cell("default joining", "top-1", default, (), TABLE8["default joining"])]
    for kind, formula in FORMULAS.items():
        cells.append(Cell(formula, "top-1", lape, (("model.pe_norm", kind),), TABLE8[kind]))
    return cells


def _table9(file: str, rest: str) -> list[Cell]:
    cells = []
    for pe, columns in TABLE9.items():
        for (join, pool), published in columns.items():
            method = JOINS[join]
            column = method.title if pool == "token" or method.pools else f"{method.title}, GAP"
            config = _config(file, f"pe={pe}", f"join={join}", rest)
            row = " + ".join(POSITIONS[part] for part in pe.split("+"))
            cells.append(Cell(row, column, config, (("model.pool", pool),), published))
    return cells


def _of_models(models: Mapping[str, Model], rest: str) -> list[Cell]:
    cells = []
    for row, model in models.items():
        for join, pe, published in (
            (BASELINE, model.default_pe, model.default),
            (PUBLISHED, model.lape_pe, model.lape),
        ):
            config = _config(model.config, model.args, f"pe={pe}" if pe else "", f"join={join}", rest)
            cells.append(Cell(row, JOINS[join].title, config, published=published))
    return cells


def _config(file: str, *args: str) -> str:
    return f"{file}:{','.join(filter(None, args))}"
