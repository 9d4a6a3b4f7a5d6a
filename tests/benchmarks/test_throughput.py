"""What the speed benchmark makes of its measurements, and that it ends in time; nothing is measured here."""

import argparse
import json
import runpy
import subprocess
import time
import types

from tests import runs

throughput = types.SimpleNamespace(**runpy.run_path(str(runs.ROOT / "benchmarks" / "throughput.py")))
OURS = throughput.Case("deit_s", "lape", "bare", "cudnn")
DEFAULT = throughput.Case("deit_s", "default", "bare", "cudnn")
TIMM = throughput.Case("deit_s", "timm", "bare", "sdpa", "default")
LITE = throughput.Case("vit_lite_7_4", "lape", "resident")


def row(img_per_sec, **more):
    return {"img_per_sec": img_per_sec, "least": 0.5 * img_per_sec, "most": 2 * img_per_sec, "device": "1 x X", **more}


def test_the_cases_of_the_goals_come_first():
    cases = throughput.cases()
    assert len(cases) == len(set(cases)) == 31
    first = set(cases[:8])
    for model in throughput.MFU_GOALS:
        assert {(model, "lape"), (model, "timm")} <= {(case.model, case.join) for case in first}
    assert LITE in first


def test_goals_by_hand():
    known = {"mfu": 0.35, "flops_per_image": 1e9, "peak": 4e12}
    measured = {OURS: row(1500, **known), DEFAULT: row(1600, **known), TIMM: row(1000), LITE: row(50_000, mfu=0.1)}
    assert throughput.goals(measured).splitlines() == [
        "deit_s: 1.60 x timm, the fastest of each (goal 1.2)",
        "deit_s: MFU of 35.0 % at best, deit_s lape bare cudnn none bfloat16 (goal 40)",
        "deit_s, bare, bfloat16: LaPE at 0.938 of the speed of default",
        "vit_lite_7_4: 50,000 img/s (goal 60,000 on an H100)",
    ]
    # timm's model with the FLOPs of ours: 1000 * 1e9 of 4e12
    table = throughput.report([{"case": case, "batch": 8, **found} for case, found in measured.items()])
    assert "| deit_s | timm | bare | sdpa | default | bfloat16 | 8 | 1,000 (500 to 2,000) | 25.0 % |" in table


def test_time_is_up(monkeypatch):
    called = []

    def run(command, timeout, **_):
        called.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    args = argparse.Namespace(seconds=1, repeats=1, batch=0, minutes=0.5, cpu_smoke=False)
    for end in (time.monotonic() + 30, time.monotonic() - 30):
        assert throughput.fitting(OURS, args, end) == {"error": "no result within --minutes=0.5"}
    assert 29 < called[0] <= 30
    assert called[1] == 0


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    batches = []

    def run(command, **_):
        (_, batch) = json.loads(command[-1].removeprefix("--case="))
        batches.append(batch)
        failed = subprocess.CompletedProcess(command, 1, "", "RESOURCE_EXHAUSTED: Out of memory")
        return failed if batch > 128 else subprocess.CompletedProcess(command, 0, 'noise\n{"img_per_sec": 1}\n', "")

    monkeypatch.setattr(subprocess, "run", run)
    args = argparse.Namespace(seconds=1, repeats=1, batch=0, minutes=1, cpu_smoke=False)
    assert throughput.fitting(OURS, args, time.monotonic() + 30) == {"batch": 128, "img_per_sec": 1}
    assert batches == [512, 256, 128]
