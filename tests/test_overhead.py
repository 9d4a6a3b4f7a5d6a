"""The command that measures what LaPE costs, in process."""

import importlib.util
import json

import jax
import pytest

from lape_jax import cli, overhead
from lape_jax.errors import UserError
from tests.port.tiny import TINY, random_variables

SIZES = [f"--model.{key}={value}" for key, value in TINY.items()]


def rows_of(tmp_path, *argv):
    out = tmp_path / "out.json"
    overhead.main([*argv, f"--out={out}"])
    contents = json.loads(out.read_text())
    return {(row["joining"], row["program"]): row for row in contents["rows"]}, contents


@pytest.mark.slow
def test_a_tiny_model(tmp_path, capsys):
    table = tmp_path / "table.md"
    rows, contents = rows_of(
        tmp_path, "--model=deit_ti", *SIZES, "--batch=2", "--repeats=2", "--dtype=bfloat16", f"--out={table}"
    )
    assert capsys.readouterr().out == table.read_text()
    assert list(rows) == [
        *((joining, program) for joining in ("default", "lape") for program in ("train step", "inference")),
        ("folded", "inference"),
    ]
    assert contents["published"] is None  # of another size
    for (joining, program), row in rows.items():
        assert (row["model"], row["width"], row["batch"], row["dtype"]) == ("deit_ti", 32, 2, "bfloat16")
        assert row["parameters"] == 32_005 + {"default": 0, "lape": 128, "folded": 96}[joining]
        # At the very least the parameters, in training twice more, for Adam; at most some images with them.
        parts = 12 if program == "train step" else 4
        assert parts * row["parameters"] < row["memory_bytes"] < 5e6
        assert 0 < row["seconds_q1"] <= row["seconds_median"] <= row["seconds_q3"] < 10
        assert row["compile_seconds"] > 0
        if joining == "default":
            assert row["ratio_q1"] == row["ratio_median"] == row["ratio_q3"] == 1
    # Products with all matrices but the head's, of five tokens, and not much more; back and forth about three times.
    matrices = 4 * 192 * 32 + 5 * 2 * (4 * 32 * 32 + 2 * 32 * 128)
    for joining in ("default", "lape", "folded"):
        assert 2 * matrices < rows[joining, "inference"]["flops_per_image"] < 3 * matrices
    assert 2.5 < rows["lape", "train step"]["flops_per_image"] / rows["lape", "inference"]["flops_per_image"] < 4


@pytest.mark.slow
def test_ahead_of_time_nothing_runs(tmp_path, capsys, monkeypatch):
    chips = jax.devices()[:2]
    monkeypatch.setattr(overhead, "chips", lambda topology: chips)
    monkeypatch.setattr(overhead.programs, "training", overhead.programs.inference)  # which compiles faster
    rows, _ = rows_of(tmp_path, "--model=deit_ti", *SIZES, "--model.join=unshared", "--batch=4", "--tpu=v5e:1x2")
    assert {joining for joining, _ in rows} == {"default", "unshared"}
    assert all(row["seconds_median"] is None and row["memory_bytes"] > 0 for row in rows.values())
    out = capsys.readouterr().out
    assert "device v5e:1x2 (2 x cpu)" in out
    assert ": time" not in out
    assert "- folded: join='unshared' has no PE norms to fold" in out
    assert "- time: nothing ran, libtpu has compiled it ahead of time" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ceit_ti", "t2t_vit_7", "cct_7_3x1", "vit_ti_16", "deit_ti_distilled"])
def test_other_families(name, tmp_path):
    sizes = [f"--model.{key}={value}" for key, value in (TINY | {"image_size": 32}).items() if key != "patch_size"]
    rows, _ = rows_of(tmp_path, f"--model={name}", *sizes, "--batch=2", "--repeats=2")
    assert len(rows) == 5
    assert rows["lape", "inference"]["parameters"] == rows["default", "inference"]["parameters"] + 2 * 2 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model"),
        (["--model=regnety_160"], "a RegNet has no position embedding"),
        (["--model=deit_ti", "--batch=0"], "--batch is '0': it must be a whole number, at least 1"),
        (["--model=deit_ti", "--repeats=1"], "--repeats is '1': it must be a whole number, at least 2"),
        (["--model=deit_ti", "--dtype=int8"], "--dtype: invalid choice: 'int8'"),
        (["--model=deit_ti", "--model.dtype=bfloat16"], "--model.dtype is --dtype here"),
        (["--model=deit_ti", "--out=table.txt"], "--out=table.txt must end in .md, .csv, .json"),
        (["--model=deit_ti", "--out=/there/is/no.md"], "there is no directory /there/is"),
        (["--model=deit_ti", "--bacth=3"], "unrecognized arguments: --bacth=3"),
        (["--model=deit_ti", "--tpu=a4"], "--tpu=a4: it must be a kind of chip and the sides of a slice"),
        (["--model=vit_ti_16", *SIZES, "--model.pool=none"], "pool='none' gives each patch logits of its own"),
        (["--model=vit_ti_16", *SIZES, "--model.num_classes=None"], "num_classes=None: training needs classes"),
    ],
)
def test_mistakes_are_one_line(options, message, capfd, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(overhead.overhead, "_initial", random_variables)
    code = cli.exit_code(lambda: overhead.main(options))
    error = capfd.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tpu=v5e:1x1 needs libtpu: pip install"):
        overhead.main(["--model=deit_ti", "--tpu=v5e:1x1"])


def test_too_little_memory(monkeypatch):
    def measure(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 TiB")

    monkeypatch.setattr(overhead.overhead, "measure", measure)
    monkeypatch.setattr(overhead.overhead, "_initial", random_variables)
    with pytest.raises(UserError, match="--batch=16 needs more memory than the device has: use a smaller one"):
        overhead.main(["--model=deit_ti", *SIZES])
