"""The command that trains a table, in process: once truly, and then with trainings that only say what they would do."""

import contextlib
import csv
import json
import re
import shutil
import signal
from unittest import mock

import pytest

from lape_jax import cli, sweep
from lape_jax.analysis import plots
from lape_jax.errors import UserError
from lape_jax.sweeps import runs as sweep_runs
from lape_jax.sweeps import seeds
from lape_jax.tasks.config import from_json
from lape_jax.train import workdir
from lape_jax.train.checkpoint import Checkpoints
from tests import quick, runs

FILE = """
from lape_jax.tasks.config import base
from lape_jax.sweeps.grid import Cell, Sweep

def sweep(arg=""):
    cells = [
        Cell("ViT", "LaPE", "tiny.py", published=73.11),
        Cell("ViT", "broken", "tiny.py", (("model.heads", "3"),)),
        Cell("streamed", "LaPE", "tiny.py", (("data.resident", "false"),)),
    ]
    return Sweep("Tiny", "somewhere", [cell for cell in cells if arg in cell.column], (0, 1), ("broken", "LaPE"))

def get_config(arg=""):
    config = base()
    config.model.name = "vit_micro"
    config.model.width, config.model.depth, config.model.heads, config.model.patch_size = 16, 1, 2, 4
    config.data.image_size, config.data.channels = 8, 1
    config.data.mean = config.data.std = (0.5,)
    config.data.scale = config.data.ratio = (1.0, 1.0)
    config.data.resident = True
    config.total_steps, config.warmup_steps = 2, 1
    config.log_steps = config.eval_steps = config.checkpoint_steps = 1
    config.report = False
    return config
"""
CELLS = ["vit_lape", "vit_broken", "streamed_lape"]
TABLES = ["cells.csv", "seeds.csv", "table.md", "table.pdf", "table.png"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(FILE)
    return path


def command(file, out, *argv):
    """The exit code."""
    return cli.exit_code(lambda: sweep.main([f"--config={file}", f"--out={out}", *argv]))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Files of the table name their form, but in the directory that `trained` makes: to draw takes most of the time."""
    monkeypatch.setattr(plots, "render", lambda figure, form: form.encode())


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """A directory of results; to be copied before anything in it is changed."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    with runs.on(1), mock.patch.object(seeds, "_RUNS_ONCE", quick.COMPILER_OPTIONS):
        assert command(file, out) == 2
    return out


def read(out, cell):
    return json.loads((out / cell / "results.json").read_text())["seeds"]


def rows(out, name):
    with (out / name).open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_what_it_leaves(trained, file):
    assert sorted(path.name for path in trained.iterdir()) == sorted([*TABLES, *CELLS])
    for cell in CELLS:
        left = {path.name for path in (trained / cell).iterdir()}
        assert left == {"results.json"} | (set() if cell == "vit_broken" else {"seed_0", "seed_1"})
    for cell in ("vit_lape", "streamed_lape"):
        results = read(trained, cell)
        for seed in (0, 1):
            workdir = trained / cell / f"seed_{seed}"
            config = from_json(workdir / "config.json")
            assert (config.seed, config.data.resident) == (seed, cell == "vit_lape")
            assert Checkpoints(workdir, read_only=True).steps()[-1] == 2
            assert runs.metrics(workdir)[-1] == {"step": 2, **results[str(seed)]}
    # Whether seeds train together or one after another, they are the same runs.
    for seed in "01":
        assert read(trained, "vit_lape")[seed] == pytest.approx(read(trained, "streamed_lape")[seed], rel=1e-5)
    assert {tuple(results) for results in read(trained, "vit_broken").values()} == {("error",)}


@pytest.mark.slow
def test_the_table(trained, file):
    mean, std = (float(rows(trained, "cells.csv")[0][name]) for name in ("mean", "std"))
    top1 = [read(trained, "vit_lape")[seed]["val/top1"] for seed in "01"]
    assert mean == pytest.approx(sum(top1) / 2)
    assert std == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    head, _, vit, streamed, *below = (trained / "table.md").read_text().splitlines()
    assert head == "|  | broken | LaPE |"
    assert vit == f"| ViT | failed | {mean:.2f} ± {std:.2f} (73.11) |"
    assert streamed == f"| streamed |  | {mean:.2f} ± {std:.2f} |"
    assert below == [
        "",
        "Tiny: top-1 in %, mean ± standard deviation over 2 seeds; "
        "in brackets what the LaPE paper reports (somewhere).",
        "",
        "Trained on digits for 2 steps.",
        "",
        f"`python -m lape_jax.sweep --config={file} --out={trained}`",
        "",
        "- ViT x broken, seeds 0, 1: config.model: width=16 is not divisible by heads=3",
    ]
    assert [(row["row"], row["column"], row["n"]) for row in rows(trained, "cells.csv")] == [
        ("ViT", "LaPE", "2"),
        ("ViT", "broken", "0"),
        ("streamed", "LaPE", "2"),
    ]
    assert len(rows(trained, "seeds.csv")) == 6


# ---- What is trained when, with trainings that take no time ----------------------------------------------------------


class Fake:
    """Stands for both ways to train: keeps what it is asked for, in order, and does what `events` says of seeds."""

    def __init__(self):
        self.asked, self.events = [], {}

    def together(self, config, numbers, directory, console):
        self.asked.append((directory.name, list(numbers)))
        return self._do({seed: {"val/top1": 10.0 + seed} for seed in numbers})

    def alone(self, job, numbers):
        self.asked.append((job.directory.name, list(numbers), "alone"))
        return self._do({seed: {"val/top1": 20.0 + seed} for seed in numbers})

    def _do(self, results):
        for seed in list(results):
            event = self.events.pop(seed, None)
            if event == "SIGTERM":
                return None
            if isinstance(event, dict):
                results[seed] = event
            elif isinstance(event, BaseException):
                raise event
            elif event:
                signal.raise_signal(event)
        return results


class Broken(Fake):
    """One of whose cells is none."""

    def together(self, config, numbers, directory, console):
        if directory.name == "vit_broken":
            raise UserError("config.model: width=16 is not divisible by heads=3")
        return super().together(config, numbers, directory, console)


@contextlib.contextmanager
def in_place_of_trainings(fake):
    with mock.patch.object(seeds, "train", fake.together), mock.patch.object(sweep_runs, "_alone", fake.alone):
        yield fake


@pytest.fixture
def fake():
    with in_place_of_trainings(Fake()) as fake:
        yield fake


@pytest.fixture(scope="module")
def recorded(file, tmp_path_factory):
    """A directory of results, as in `trained`, but without runs; to be copied before anything in it is changed."""
    out = tmp_path_factory.mktemp("recorded") / "out"
    with in_place_of_trainings(Broken()):
        assert command(file, out) == 2
    return out


@pytest.fixture
def out(recorded, tmp_path):
    """A copy of the results, by which the cell that failed has now been mended."""
    return shutil.copytree(recorded, tmp_path / "out")


def test_the_same_command_trains_only_what_failed(file, out, recorded, fake, capsys):
    assert command(file, out) == 0
    assert fake.asked == [("vit_broken", [0, 1])]
    assert "[2/3] ViT x broken: seeds 0, 1\n" in capsys.readouterr().out
    assert [row["n"] for row in rows(out, "cells.csv")] == ["2"] * 3
    for cell in ("vit_lape", "streamed_lape"):
        assert (out / cell / "results.json").read_bytes() == (recorded / cell / "results.json").read_bytes()
    assert command(file, out) == 0
    assert len(fake.asked) == 1


def test_added_seeds_are_trained_and_others_are_kept(file, out, fake):
    assert command(f"{file}:LaPE", out, "--seeds=7,1") == 0
    assert fake.asked == [("vit_lape", [7]), ("streamed_lape", [7], "alone")]
    assert set(read(out, "vit_lape")) == {"0", "1", "7"}
    assert [row["seed"] for row in rows(out, "seeds.csv")] == ["7", "1"] * 2
    assert command(f"{file}:LaPE", out, "--seeds=0,1,7") == 0
    assert len(fake.asked) == 2
    assert [row["n"] for row in rows(out, "cells.csv")] == ["3", "3"]


def test_one_after_another(file, tmp_path, fake, capsys):
    assert command(f"{file}:broken", tmp_path, "--config.data.resident=false") == 0
    assert fake.asked == [("vit_broken", [0], "alone"), ("vit_broken", [1], "alone")]
    assert "one after another: its images do not lie on the device (config.data.resident)" in capsys.readouterr().out


def test_a_seed_that_went_wrong_is_tried_again(file, tmp_path, fake, capsys):
    fake.events = {1: {"error": "NaN"}}
    assert command(f"{file}:broken", tmp_path) == 2
    assert "error: there were failures in ViT x broken: see " in capsys.readouterr().err
    assert [row["n"] for row in rows(tmp_path, "cells.csv")] == ["1"]
    assert command(f"{file}:broken", tmp_path) == 0
    assert fake.asked == [("vit_broken", [0, 1]), ("vit_broken", [1])]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (UserError("a\nb"), "a b"),
        (ZeroDivisionError("no\nmore"), "ZeroDivisionError: no"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_fails_the_rest_is_trained(file, tmp_path, fake, capsys, error, shown):
    fake.events = {0: error}
    assert command(file, tmp_path) == 2
    assert [name for name, *_ in fake.asked] == [*CELLS, "streamed_lape"]
    assert read(tmp_path, "vit_lape") == {"0": {"error": shown}, "1": {"error": shown}}
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, UserError))


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGTERM", 0, "stopped; the same command goes on, in "), ("SIGINT", 130, "")]
)
def test_a_signal_at_the_end_of_a_training_is_heard(file, tmp_path, fake, capsys, name, code, said):
    before = signal.getsignal(signal.SIGTERM)
    fake.events = {1: signal.Signals[name]}
    assert command(file, tmp_path) == code
    assert fake.asked == [("vit_lape", [0, 1])]
    assert set(read(tmp_path, "vit_lape")) == {"0", "1"}  # its results are kept
    assert said in capsys.readouterr().out
    assert "| - |" in (tmp_path / "table.md").read_text()
    assert command(file, tmp_path) == 0
    assert [asked[0] for asked in fake.asked] == [*CELLS, "streamed_lape"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_was_stopped_goes_on(file, tmp_path, fake, capsys):
    fake.events = {0: "SIGTERM"}
    assert command(file, tmp_path) == 0
    assert f"stopped; the same command goes on, in {tmp_path}\n" in capsys.readouterr().out
    assert read(tmp_path, "vit_lape") == {}
    assert command(f"{file}:LaPE", tmp_path) == 0
    assert fake.asked[:2] == [("vit_lape", [0, 1])] * 2


@contextlib.contextmanager
def interrupted(cell, numbers, known):
    """As if these seeds had been interrupted while they trained together."""
    state = cell / "together" / "checkpoints" / "1"
    state.mkdir(parents=True)
    (cell / "together" / "cell.json").write_text(json.dumps({"seeds": numbers}))
    content = json.loads((cell / "results.json").read_text())
    content["seeds"] = {seed: result for seed, result in content["seeds"].items() if seed in known}
    (cell / "results.json").write_text(json.dumps(content))
    yield
    assert not (cell / "together").exists()


def test_seeds_that_had_begun_together_end_together(file, out, fake, capsys):
    with interrupted(out / "vit_lape", [0, 1], known="0"):
        assert command(f"{file}:LaPE", out, "--seeds=1,5") == 0
    assert fake.asked[:2] == [("vit_lape", [0, 1]), ("vit_lape", [5])]
    assert "first to its end what has begun together: seeds 0, 1\n" in capsys.readouterr().out
    assert set(read(out, "vit_lape")) == {"0", "1", "5"}


def test_seeds_whose_results_are_safe_are_not_gone_on_with(file, out, fake):
    with interrupted(out / "vit_lape", [0, 1], known="01"):
        assert command(f"{file}:LaPE", out, "--seeds=5") == 0
    assert fake.asked[0] == ("vit_lape", [5])


def test_what_failed_can_be_gone_on_with(file, out, fake):
    fake.events = {1: OSError("the disk is full")}
    with interrupted(out / "vit_lape", [0, 1], known="0"):
        assert command(f"{file}:LaPE", out) == 2
        assert read(out, "vit_lape")["1"] == {"error": "OSError: the disk is full"}
        assert "val/top1" in read(out, "vit_lape")["0"]
        assert seeds.begun(out / "vit_lape") == [0, 1]
        assert command(f"{file}:LaPE", out) == 0


# ---- What is refused before anything is trained ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--config.optimizer.lr=0.5"], "vit_lape' holds runs of another config than this sweep's: use another --out"),
        (["--config.seed=1"], "--config.seed does not suit a sweep, which is one process and has its --seeds"),
        (["--config.distributed.process_count=2"], "--config.distributed.process_count does not suit a sweep"),
        (
            ["--config.model.heads=2"],
            "cells ViT x LaPE and ViT x broken have the same config: leave out",
        ),
        (["--workdir=x"], "a sweep has many workdirs, all in --out=DIR: leave out --workdir"),
        (["--seeds=0,x"], "--seeds is '0,x': it must be whole numbers, separated by commas"),
        (["--seeds=1,1"], "--seeds is '1,1': seeds must differ, and lie between 0 and 2^31 - 1"),
        (["--seeds=-1"], "--seeds is '-1': seeds must differ"),
        (["--seeds=2147483648"], "--seeds is '2147483648': seeds must differ"),
        (["--config.optimzer.lr=1"], "optimzer"),
    ],
)
def test_what_does_not_fit(file, out, fake, capsys, argv, error):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert command(file, out, *argv) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert error in err
    assert err.count("\n") == 1
    assert fake.asked == []
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}', '{"config": {}, "seeds": {"x": {}}}', '{"seeds": 3}'])
def test_results_that_cannot_be_read(file, out, fake, capsys, content):
    (out / "vit_broken" / "results.json").write_text(content)
    assert command(file, out) == 2
    assert "results.json' cannot be read as results: use another --out, or remove the cell" in capsys.readouterr().err
    assert fake.asked == []


def test_a_directory_in_use(file, out, fake, capsys):
    with workdir.claim(out):
        assert command(file, out) == 2
    assert f"another process trains in workdir {str(out)!r}" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made(file, tmp_path, fake, capsys):
    (tmp_path / "file").touch()
    assert command(file, tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (FILE.replace('"broken"', '"LaPE!"'), "cells ViT x LaPE and ViT x LaPE! would both be"),
        ("def sweep(arg):\n    return 3", "sweep of .* returned int: it must return a Sweep"),
        ("", "has no sweep.arg. function"),
    ],
)
def test_config_files_without_a_sweep(tmp_path, capsys, text, error):
    path = tmp_path / "tiny.py"
    path.write_text(text)
    assert command(path, tmp_path / "out") == 2
    assert re.search(error, capsys.readouterr().err)
