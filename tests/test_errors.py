"""Mistakes of a user: one line that names the thing and what would be right, exit code 2, and nothing overwritten."""

import ast
import contextlib
import functools
import io
import itertools
import logging
import re
import shutil
import subprocess
import sys

import pytest

from lape_jax import cli, evaluate, main
from lape_jax.errors import listed, nearest
from tests import quick, runs

TRAIN = {"main": main.main, "description": "Trains.", "required": ("config", "workdir")}
EVALUATE = {"main": evaluate.main, "description": "Evaluates.", "options": evaluate.options}


def command(what, *argv, devices=8):
    """Runs TRAIN or EVALUATE; returns exit code, stdout, and stderr with warnings, as in a process of its own."""
    root, streams = logging.getLogger(), (io.StringIO(), io.StringIO())
    names = {level: logging.getLevelName(level) for level in (logging.WARNING, logging.ERROR)}
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), runs.on(devices):
            code = cli.run(argv=[str(arg) for arg in argv], **what)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, name in names.items():
            logging.addLevelName(number, name)
    return code, *(stream.getvalue() for stream in streams)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a whole run."""
    return runs.finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    """A few of the digits as a class-per-folder data set: two for training, one for validation, of each class."""
    root = runs.write_png_folder(tmp_path_factory.mktemp("data"), each=2)
    for path in root.glob("val/*"):
        sorted(path.iterdir())[1].unlink()
    return root


COLOUR = ["--config.data.channels=3", "--config.data.mean=(0.5,0.5,0.5)", "--config.data.std=(0.5,0.5,0.5)"]
EMA = "--config.ema_decay=0.9"  # as in the finished run: its checkpoints hold the average
FOLDER = ["--config.data.source=folder", "--config.batch_size=8", "--config.data.threads=2"]


def contents(workdir):
    """Every file and directory below: bytes and times of change."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        found[str(path.relative_to(workdir))] = (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else ()
    return found


def assert_error(result, message):
    code, _, err = result
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert message in err


# ---- A command line that does not fit, in the workdir of a finished run ---------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.optimzer.lr=1"], "unknown key config.optimzer.lr (did you mean config.optimizer.lr?)"),
        (["--config.batchsize=8"], "unknown key config.batchsize (did you mean config.batch_size?)"),
        (["--config.batch_size=abc"], "config.batch_size is 'abc': it must be an int"),
        (["--config.optimizer.lr=-1"], "config.optimizer.lr is -1.0: it must be above 0"),
        (["--config.data.resident=perhaps"], "config.data.resident is 'perhaps': it must be true or false"),
        (["--config.dtype=float61"], "config.dtype: 'float61' is not one of float32, bfloat16 (did you mean"),
        (["--config.model.join=laep"], "join='laep' is not one of"),
        (["--config.model.widht=32"], "(did you mean 'width'?)"),
        (["--config.model.name=deit_tj"], "(did you mean 'deit_ti'?)"),
        (
            ["--config.model.patch_size=3"],
            "config.model: image_size=8 is not divisible by patch_size=3; image_size comes from config.data.image_size",
        ),
        (["--config.model.name=resnet"], "t2t_vit_14, t2t_vit_t_14 and "),
        (["--config.model.pe=swirl"], "config.model: pe='swirl' is not one of learnable, sincos_1d, "),
        (["--config.model.drop_path=1"], "config.model: drop_path=1.0 is not a rate in [0, 1)"),
        (
            ["--config.model.attention=cudnn"],
            "config.model: attention='cudnn' is not possible here, use attention='auto'",
        ),
        (["--config.model.join=folded"], "config.model.join='folded' is what a trained model becomes for inference"),
        (["--config.model.dtype=float61"], "config.model.dtype is 'float61', but by config.dtype it is float32: leave"),
        (["--config.model=deit_ti"], "config.model is a group of keys: set one of them, such as config.model.name"),
        (["--config.model.heads=3"], "config.model: width=16 is not divisible by heads=3"),
        (["--config.model.num_classes=100"], "config.model.num_classes is 100, but by the data it is 10: leave it out"),
        (["--config.data.source=folders"], "config.data.source: 'folders' is not one of digits, folder, arrays, tfds"),
        (["--config.data.channels=3"], "config.data.mean has 1 values, but config.data.channels is 3"),
        (["--config.batch_size=5000"], "batch_size is 5000, but must lie between 1 and the 1438 training examples"),
        (["--config.batch_size=60", EMA], "config.batch_size 60 does not divide over 8 devices"),
        (["--config.optimizer.accumulate=16", EMA], "config.optimizer.accumulate = 4 does not divide over 8 devices"),
        (["--config.optimizer.accumulate=3"], "config.batch_size 64 is no multiple of config.optimizer.accumulate 3"),
        (["--config.mesh.data=3"], "config.mesh (data 3, fsdp 1, tensor 1) does not fit 8 devices"),
        (["--config.mesh.data=-1", "--config.mesh.fsdp=-1"], "and at most one of them -1 (all other devices)"),
        (["--config.sharding=(('head/.*','replicate'),)"], "config.sharding: no rule matches the parameter '"),
        (["--config.sharding=(('.*','fdsp'),)"], "'fdsp' is not one of replicate, fsdp"),
        (["--config.sharding=replicate"], """config.sharding is 'replicate': it must be a tuple such as "(('.*',"""),
        (["--config.sharding=('.*','fsdp')"], "it must be a tuple of (regex, strategy) pairs, as (('.*', 'fsdp'),)"),
        (["--config.sharding=(('.*','tensor(0)'),)"], "of shape (2, 16) counts layers: use a later one"),
        (
            ["--config.sharding=(('.*qkv/kernel','tensor(7)'),('.*','replicate'))"],
            "tensor(7) is not possible, as 'blocks/attn/qkv/kernel' of shape (2, 16, 48) has no such axis: use one of",
        ),
        (
            ["--config.mesh.tensor=8", "--config.sharding=(('head/bias','tensor(0)'),('.*','replicate'))"],
            "config.mesh.tensor 8 does not divide that axis of 'head/bias', whose shape is (10,)",
        ),
        (["--config.optimizer.wd_mults=0.1"], "config.optimizer.wd_mults is '0.1': it must be a tuple\n"),
        (["--config.optimizer.wd_mults=(('.*bias',0),)"], "config.optimizer.wd_mults: no rule matches the parameter '"),
        (
            ["--config.warmup_steps=100"],
            "config.warmup_steps = 100 is a warm-up of 100 steps, longer than the 22 steps of config.total_epochs",
        ),
        (
            ["--config.warmup_steps=20", "--config.cooldown_percent=50"],
            "than the 22 steps of config.total_epochs = 1.0 less 11 of config.cooldown_percent = 50.0: make it shorter",
        ),
        (["--config.total_steps=5", "--config.total_epochs=1"], "are the same duration: give one of them"),
        (
            ["--config.total_steps=3000000000"],
            "config.total_steps = 3000000000 makes 3e+09 steps, and they are counted",
        ),
        (
            ["--config.cooldown_epochs=5"],
            "22 in all (config.total_*) less 110 of cool-down (config.cooldown_*): make that",
        ),
        (
            ["--config.steps_per_dispatch=1000000000"],
            "config.steps_per_dispatch is 1000000000: it must be from 1 to 10000",
        ),
        (
            ["--config.augment.policy=rand-m9"],
            "config.augment.policy 'rand-m9' needs colour images, and config.data.chan",
        ),
        (
            ["--config.augment.color_jitter=0.5"],
            "config.augment.color_jitter 0.5 needs colour images, and config.data.ch",
        ),
        (
            [*COLOUR, "--config.augment.policy=rand-q"],
            "config.augment.policy: augmentation policy 'rand-q': 'q' is not a section of RandAugment",
        ),
        (["--config.distributed.process_count=2"], "but there is only process_count 2"),
        (["--config.keep_checkpoints=0"], "config.keep_checkpoints is 0: it must be at least 1"),
        (["--wrokdir=elsewhere"], "option '--wrokdir' is not one of --config, --workdir (did you mean '--workdir'?)"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_options(finished, options, message):
    before = contents(finished)
    assert_error(command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={finished}", *options), message)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (runs.DIGITS.replace("digits", "digit"), "digits.py'?)"),
        (runs.DIGITS.replace("debug", "debgu"), "config argument 'debgu': "),
        (runs.DIGITS.replace("debug", "debgu"), "(did you mean 'debug'?)"),
        (runs.DIGITS.replace("debug", "seed=one"), "config argument 'seed' is 'one': it must be an int"),
        (runs.DIGITS.replace("debug", "join=laep"), "(did you mean 'lape'?)"),
        ("", "--config=FILE is missing"),
    ],
)
def test_config_files(finished, file, message):
    before = contents(finished)
    assert_error(command(TRAIN, f"--config={file}", f"--workdir={finished}"), message)
    assert contents(finished) == before


@pytest.mark.parametrize("options", [["--config.model.width=32"], ["--config.model.join=default"]])
@pytest.mark.parametrize("with_config", [True, False])
def test_a_workdir_of_another_model(finished, tmp_path, options, with_config):
    workdir = runs.copy(finished, tmp_path)
    if not with_config:  # then the checkpoints must tell
        (workdir / "config.json").unlink()
    before = contents(workdir)
    result = command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={workdir}", EMA, *options)
    assert_error(result, "of another model: ")
    name = options[0].partition("=")[0].rpartition(".")[2]
    assert (f"its {name} is " in result[2]) if with_config else re.search(r"'params/\S+' is .* there but ", result[2])
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir={finished}", "--step=7"], "there is no checkpoint of step 7 in "),
        (["--workdir={finished}", "--step=bets"], "--step is 'bets': it must be a step, 'last' or 'best'"),
        (["--workdir={finished}", "--config=" + runs.DIGITS], "leave out --config"),
        (["--workdir={finished}/events"], "is it the workdir of a run?"),
        (["--workdir={finished}", "--config.model.width=32"], "of another model: "),
        (["--workdir={finished}", "--config.batch_siez=1"], "(did you mean config.batch_size?)"),
        ([], "--config=FILE is missing"),
        (["--config=" + runs.DIGITS], "give either --workdir=DIR (a run) or --weights=FILE"),
        (["--config=" + runs.DIGITS, "--weights=/nowhere/deit.pth"], "/nowhere/deit.pth"),
        (["--config=" + runs.DIGITS, "--weights=deit.pth", "--step=best"], "--step is of a run: leave it out"),
    ],
)
def test_evaluate(finished, argv, message):
    before = contents(finished)
    assert_error(command(EVALUATE, *(arg.format(finished=finished) for arg in argv)), message)
    assert contents(finished) == before


# ---- Data that are missing, empty or do not fit ---------------------------------------------------------------------


def missing(root):
    shutil.rmtree(root)


def no_training_directory(root):
    (root / "train").rename(root / "training")


def empty(root):
    shutil.rmtree(root)
    (root / "train").mkdir(parents=True)
    (root / "val").mkdir()


def no_class_directories(root):
    for path in (root / "val").rglob("*.png"):
        path.rename(root / "val" / path.name)
    for path in (root / "val").iterdir():
        if path.is_dir():
            path.rmdir()


def empty_class(root):
    for path in (root / "train" / "3").iterdir():
        path.unlink()


def class_only_in_val(root):
    (root / "val" / "9").rename(root / "val" / "nine")


def corrupt_everywhere(root):
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "data.path '{root}' is not a directory"),
        (no_training_directory, "{root} has no directory 'train'; it holds training, val"),
        (empty, "{root}/train has no class directories"),
        (no_class_directories, "{root}/val has no class directories, only "),
        (empty_class, "class directory {root}/train/3 holds no"),
        (class_only_in_val, "class 'nine' of {root}/val is not a class of {root}/train"),
        (corrupt_everywhere, "{root}/train/0/"),
    ],
)
def test_folders(finished, png, tmp_path, damage, message):
    root = shutil.copytree(png, tmp_path / "png")
    damage(root)
    before = contents(finished)
    options = [*FOLDER, f"--config.data.path={root}", "--config.data.max_corrupt=0", "--config.total_steps=100"]
    result = command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={finished}", EMA, *options)
    assert_error(result, message.format(root=root))
    assert contents(finished) == before


def test_tfds_directories(finished, tmp_path):
    argv = [TRAIN, f"--config={runs.DIGITS}", f"--workdir={finished}", "--config.data.source=tfds"]
    before = contents(finished)
    assert_error(command(*argv), "config.data.name is empty: data.source=tfds needs it (--config.data.name=...)")
    argv += ["--config.data.name=mnist", f"--config.data.path={tmp_path}"]
    result = command(*argv)
    assert_error(result, f"data.name: {tmp_path} holds no TFDS data set; prepare it once with: ")
    assert f"python -m lape_jax.prepare tfds mnist --path={tmp_path}" in result[2]
    assert_error(command(*argv, f"--config.data.path={tmp_path}/absent"), f"{tmp_path}/absent' is not a directory")
    assert contents(finished) == before


# ---- Images that cannot be read -------------------------------------------------------------------------------------


def corrupt(root, split, count):
    """Truncates images of the first class; returns their paths."""
    paths = sorted((root / split / "0").iterdir())[:count]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return [str(path) for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
def test_a_corrupt_image_is_skipped_counted_and_named(png, tmp_path, resident):
    root = shutil.copytree(png, tmp_path / "png")
    names = corrupt(root, "train", 2)
    options = [*FOLDER, f"--config.data.path={root}", f"--config.data.resident={resident}"]
    run = [f"--config={runs.DIGITS}", f"--workdir={tmp_path / 'run'}", *options]
    run.append("--config.total_epochs=2")
    code, out, err = command(TRAIN, *run, "--config.data.max_corrupt=2", devices=1)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("done: 4 steps")
    # Two epochs, but each is told once; which one comes first is a matter of the order of the data.
    lines = err.splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        "skipped a corrupt image (1 so far)",
        "skipped a corrupt image (2 so far)",
    ]
    assert sorted(line.split(": ")[2].removesuffix(" cannot be read") for line in lines) == names

    shutil.rmtree(tmp_path / "run")
    code, out, err = command(TRAIN, *run, "--config.data.max_corrupt=1", devices=1)
    assert code == 2, err
    warnings, error = err.splitlines()[:-1], err.splitlines()[-1]
    assert all(line.startswith("warning: skipped a corrupt image (") for line in warnings)
    assert error.startswith("error: more than 1 images (data.max_corrupt) cannot be read, among them: ")
    assert all(name in error for name in names)


@pytest.mark.slow
def test_a_corrupt_image_stops_an_evaluation(png, tmp_path):
    root = shutil.copytree(png, tmp_path / "png")
    (name,) = corrupt(root, "val", 1)
    run = [f"--config={runs.DIGITS}", f"--workdir={tmp_path / 'run'}", *FOLDER, f"--config.data.path={root}"]
    assert_error(command(TRAIN, *run, "--config.total_epochs=2", devices=1), f"{name} cannot be read: ")
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()  # what was trained until then is not lost


# ---- The workdir ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["workdir", "workdir/below"])
def test_a_workdir_that_is_a_file(tmp_path, place):
    (tmp_path / "workdir").write_text("precious")
    result = command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={tmp_path / place}")
    assert_error(result, f"workdir '{tmp_path / place}' cannot be written: ")
    assert (tmp_path / "workdir").read_text() == "precious"


@pytest.mark.parametrize("name", quick.first(2, ["checkpoints", "config.json", "metrics.jsonl"]))
def test_something_in_the_way_within_the_workdir(tmp_path, name):
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    if name == "checkpoints":
        (workdir / name).write_text("precious")
    else:
        (workdir / name / "precious").mkdir(parents=True)
    before = contents(workdir)
    assert_error(command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={workdir}"), str(workdir))
    assert {path: contents(workdir)[path] for path in before} == before


# ---- A run that goes wrong, and whole processes ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_not_finite(tmp_path):
    options = ["--config.optimizer.lr=1e38", "--config.optimizer.warmup_lr=1e38", "--config.log_steps=4"]
    result = command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={tmp_path}", *options, devices=1)
    assert_error(result, "the loss or its gradient became NaN or infinite in step ")
    assert "the last good checkpoint is none; a smaller --config.optimizer.lr or " in result[2]
    assert re.search(r"examples of the batch \(.*\): \[\d+(, \d+){63}\]", result[2])
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    quick.first(
        1,
        [
            (["--config.optimzer.lr=1"], "error: unknown key config.optimzer.lr (did you mean config.optimizer.lr?)\n"),
            (
                ["--config.model.width=32"],
                "error: {workdir} holds a run of another model: its width is 16, this one's is 32; use another "
                "--workdir, or the config it was started with\n",
            ),
        ],
    ),
)
def test_a_process_of_its_own(finished, argv, message):
    command = [sys.executable, "-m", "lape_jax.main", f"--config={runs.DIGITS}", f"--workdir={finished}", *argv]
    before = contents(finished)
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message.format(workdir=finished))
    assert contents(finished) == before


def test_fewer_steps_than_the_run_has_made(finished):
    before = contents(finished)
    result = command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={finished}", EMA, "--config.total_steps=20")
    assert_error(
        result, f"{finished} holds a run of 44 steps, more than the 20 that the config asks for: raise config.total_*"
    )
    assert contents(finished) == before


def test_clipping_where_it_would_stop_all_learning(tmp_path):
    options = ["--config.optimizer.clip_norm=1", "--config.model.pe=sincos_2d"]
    result = command(TRAIN, f"--config={runs.DIGITS}", f"--workdir={tmp_path / 'run'}", *options)
    assert_error(result, "config.optimizer.clip_norm cannot be used with pe='sincos_2d' and join='lape'")
    assert not (tmp_path / "run").exists()


# ---- How things are said --------------------------------------------------------------------------------------------


def test_long_lists_are_cut_and_counted():
    names = [f"name_{i:02}" for i in range(60)]
    assert listed(names[:5]) == "name_00, name_01, name_02, name_03, name_04"
    assert listed(names) == f"{', '.join(names[:26])} and 34 more"
    assert nearest("name_5", names) == f"'name_5' is not one of {listed(names)} (did you mean 'name_59'?)"
    assert listed(["x" * 500, "y"]) == f"{'x' * 500} and 1 more"
    assert listed([]) == ""


def test_memory_of_the_host(capsys):
    def main():
        raise MemoryError("Unable to allocate 238. GiB")

    assert cli.exit_code(main) == 2
    error = "error: the memory of the host (not of the device) does not suffice (Unable to allocate 238. GiB): use a "
    assert capsys.readouterr().err.startswith(error)


ANY = "\0"  # in a text of the code: what an f-string puts there


@functools.cache
def texts():
    """Every text in the code that may be said."""
    found = set()
    for path in sorted(runs.ROOT.glob("lape_jax/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else ANY for part in node.values)
                found.add("".join(parts).removeprefix("error: "))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def literally(text, said):
    """How many characters of `said`, which may end before `text`, `text` has itself; -1 if it says something else."""
    found, best = -1, [0] + [-1] * len(said)  # by how much of `said` is used up
    for character in text:
        if character == ANY:
            best = [-1, *itertools.accumulate(best[:-1], max)]
        else:
            pairs = zip(best, said, strict=False)
            best = [-1, *(count + 1 if count >= 0 and given == character else -1 for count, given in pairs)]
        found = max(found, best[-1])
        if max(best) < 0:
            break
    return found


def test_literally():
    text = f"data of {ANY} have {ANY} classes: {ANY}"
    assert literally(text, "data of DIR have 10 classes") == len("data of  have  classes")
    assert literally(text, "data of DIR have") == len("data of  have")
    assert literally(text, "data of DIR has 10 classes") == len("data of ")
    assert literally(text, "the data of DIR") == -1
    assert literally("data", "data of DIR") == -1


ROWS = re.findall(r"^\| `([^`]+)`", (runs.ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS)
def test_the_page_of_errors_quotes_the_code(row):
    """Of what a row quotes, at least a third is literally in one text; "..." stands for anything."""
    said = row.removesuffix("...").removeprefix("config.model: ")  # which goes before many
    assert any(3 * literally(text, said) >= len(said) for text in texts())


def test_the_page_of_errors_is_read():
    assert len(ROWS) > 20
