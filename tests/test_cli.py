import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lape_jax import cli
from lape_jax.config.reading import to_json
from lape_jax.errors import UserError
from lape_jax.tasks import config as configs

CONFIG = """\
from lape_jax.config.reading import parse_arg
from lape_jax.tasks.config import base


def get_config(arg=""):
    arg = parse_arg(arg, join="lape", debug=False, seed=0)
    config = base()
    config.model.join = arg.join
    config.seed = arg.seed
    config.total_epochs = 60.0
    config.warmup_epochs = 5.0
    config.log_steps = config.eval_steps = config.checkpoint_steps = 100
    return config
"""


def weights(parser):
    parser.add_argument("--weights")


def images(parser):
    parser.add_argument("files", nargs="+", metavar="FILE", type=os.path.expanduser)


@pytest.fixture(autouse=True)
def _restore_logging():
    """`quiet_logs` is for a process of its own: undo it."""
    root, levels = logging.getLogger(), [logging.getLevelName(level) for level in (logging.WARNING, logging.ERROR)]
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, name in zip((logging.WARNING, logging.ERROR), levels, strict=True):
        logging.addLevelName(number, name)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "digits.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def run(capsys):
    """Runs a command; returns its exit code, the config and the arguments it got, and what it wrote to stderr."""

    def run(*argv, main=None, **settings):
        got = [None, None]

        def keep(config, args):
            got[:] = config, args

        code = cli.run(main or keep, argv, **settings)
        return code, *got, capsys.readouterr().err

    return run


def test_config_argument_overrides_and_options(run, file, tmp_path):
    argv = [f"--config={file}:join=default,seed=3", "--workdir", str(tmp_path), "--weights=w.npz"]
    argv += ["--config.optimizer.lr=1", "--config.batch_size", "64", "--config.augment.flip", "--config.model.width=96"]
    argv += ["--config.total_steps=10", "--noconfig.data.resident", "--config.data.mean=(0.5, -1, 1e-1)"]
    code, config, args, err = run(*argv, required=("config", "workdir"), options=weights)
    assert (code, err) == (0, "")
    assert (args.workdir, args.weights) == (str(tmp_path), "w.npz")
    auto = dict.fromkeys(("attention", "unroll", "remat"), "auto")
    assert config.model.to_dict() == {"name": "deit_ti", "join": "default", "width": 96, **auto}
    assert (config.seed, config.batch_size, config.optimizer.lr) == (3, 64, 1.0)
    assert (config.augment.flip, config.data.resident, config.data.mean) == (True, False, (0.5, -1, 0.1))
    assert (config.total_steps, config.total_epochs) == (10, None)


def test_shipped_configs_have_names(run, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, config, _, err = run("--config=deit_ti:join=default")
    assert (code, err, config.model.name, config.model.join) == (0, "", "deit_ti", "default")
    assert run("--config=digits.py")[1].total_epochs == 60  # the file that is there
    assert run("--config=digits")[1].model.name != "deit_ti"
    assert "config file 'deit_it' cannot be read" in run("--config=deit_it")[-1]
    assert "(did you mean 'deit_ti'?)" in run("--config=deit_it")[-1]
    assert "cannot be read" in run("--config=elsewhere/deit_ti")[-1]


def test_config_of_a_workdir(run, file, tmp_path):
    _, config, _, _ = run(f"--config={file}:seed=7")
    (tmp_path / "config.json").write_text(to_json(config))
    code, again, _, _ = run(f"--workdir={tmp_path}", "--config.eval_batch_size=9")
    assert (code, again.seed, again.eval_batch_size) == (0, 7, 9)


def test_what_a_command_assumes(run, file, tmp_path):
    """Unless the command line says otherwise, or the run is older than the key."""
    seen = []
    assumed = {"data.orientation": "view"}
    main = lambda config, args: seen.append(config.data.orientation)  # noqa: E731
    assert cli.run(main, [f"--config={file}"], assumed=assumed) == 0
    assert cli.run(main, [f"--config={file}", "--config.data.orientation=stored"], assumed=assumed) == 0
    values = cli.load_config(str(file), "").to_dict()
    for name, known in (("new", True), ("old", False)):
        if not known:
            del values["data"]["orientation"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        assert cli.run(main, [f"--workdir={tmp_path / name}"], assumed=assumed) == 0
        assert cli.run(main, [f"--workdir={tmp_path / name}"]) == 0
    assert seen == ["view", "stored", "view", "stored", "stored", "stored"]


def test_a_run_keeps_its_orientation(run, file, tmp_path, caplog):
    """That of its workdir, or what there was before the key, whatever its config file says since."""
    values = cli.load_config(str(file), "").to_dict()
    Path(file).write_text(
        Path(file).read_text().replace("return config", "config.data.orientation = 'view'; return config")
    )
    load = lambda *overrides: cli.load_config(str(file), str(tmp_path / "run"), overrides).data.orientation  # noqa: E731
    assert (load(), caplog.text) == ("view", "")
    (tmp_path / "run").mkdir()
    for before, kept in (("view", "view"), ("stored", "stored"), (None, "stored")):
        values["data"]["orientation"] = before
        if before is None:
            del values["data"]["orientation"]
        (tmp_path / "run" / "config.json").write_text(json.dumps(values))
        caplog.clear()
        assert load() == kept
        assert ("config.data.orientation stays 'stored', as the run in" in caplog.text) == (kept == "stored")
        assert load(("data.orientation", "view")) == "view"


def test_a_run_from_before_auto_goes_on_as_it_was(file, tmp_path):
    """Resumed with its config file, which leaves it to the devices now, or read back from its workdir alone."""
    values = cli.load_config(str(file), "").to_dict()
    assert {values["model"][key] for key in ("attention", "unroll", "remat")} == {"auto"}

    def how(model, file, *overrides):
        (tmp_path / "config.json").write_text(json.dumps(values | {"model": model}))
        found = cli.load_config(file, str(tmp_path), overrides).model
        return found.attention, found.unroll, found.remat

    old = {"name": "deit_ti", "remat": "full"}
    for origin in (str(file), ""):
        assert how(old, origin) == ("xla", 1, "full")
        assert how(values["model"], origin) == ("auto", "auto", "auto")
        assert how(values["model"] | {"attention": "xla"}, origin) == ("xla", "auto", "auto")
    assert how(old, str(file), ("model.attention", "cudnn")) == ("cudnn", 1, "full")
    (tmp_path / "config.json").write_text(json.dumps(values | {"model": {"name": "upernet_vit_adapter_ti"}}))
    assert configs.from_json(tmp_path / "config.json").model.attention == "blocks"


def test_names_that_are_no_text_are_printed(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict, as in most shells
    monkeypatch.setattr("sys.stdout", printed)
    monkeypatch.setattr(cli, "quiet_logs", lambda: None)
    assert cli.exit_code(lambda: print("caf\udce9.jpg", flush=True)) == 0
    assert printed.buffer.getvalue() == b"caf\\udce9.jpg\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config=FILE is missing"),
        (["--config={file}"], "--workdir=DIR is missing"),
        (["--config={file}", "--wrkdir=x"], "option '--wrkdir' is not one of --config, --workdir (did you mean '--wor"),
        (["--config={file}", "--workdir"], "argument --workdir: expected one argument"),
        (["--config={file}", "--workdir=x", "extra"], "option 'extra' is not one of --config, --workdir"),
        (["--config={file}x", "--workdir=x"], "digits.pyx' cannot be read (No such file or directory): "),
        (["--config=/nowhere/digits.py", "--workdir=x"], "config file '/nowhere/digits.py' cannot be read"),
        (["--config={file}:jion=default", "--workdir=x"], "(did you mean 'join'?)"),
        (["--config={file}:seed=x", "--workdir=x"], "config argument 'seed' is 'x': it must be an int"),
        (
            ["--config={file}:debug=maybe", "--workdir=x"],
            "config argument 'debug' is 'maybe': it must be true or false",
        ),
        (["--config={file}", "--workdir=x", "--config.optimzer.lr=1"], "(did you mean config.optimizer.lr?)"),
        (
            ["--config={file}", "--workdir=x", "--config.batch_size=abc"],
            "config.batch_size is 'abc': it must be an int",
        ),
        (["--config={file}", "--workdir=x", "--config.batch_size"], "config.batch_size is 'true': it must be an int"),
        (["--config={file}", "--workdir=x", "--config.augment.flip=maybe"], "it must be true or false"),
        (["--config={file}", "--workdir=x", "--noconfig.augment.flip=1"], "takes no value"),
        (["--config={file}", "--workdir=x", "--config.batch_size=0"], "it must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run, file, argv, message):
    code, config, _, err = run(*(arg.format(file=file) for arg in argv), required=("config", "workdir"))
    assert code == 2, err
    assert config is None
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_too_little_memory_is_one_line_and_other_failures_are_not(run, file):
    def fail(text):
        def main(config, args):
            raise jax.errors.JaxRuntimeError(text)

        return run(f"--config={file}", main=main)

    code, *_, err = fail("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nand a page of details")
    assert (code, err.count("\n")) == (2, 1)
    assert "Out of memory allocating 5 bytes." in err
    assert "--config.batch_size" in err
    code, *_, err = fail("INTERNAL: something broke")
    assert (code, err.startswith("Traceback")) == (1, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optimzer.lr = 1.0", "line 11: unknown key config.optimzer (did you mean config.optimizer?)"),
        ("config.batchsize = 1", "line 11: unknown key config.batchsize (did you mean config.batch_size?)"),
        ("config.update(batchsize=1)", "line 11: unknown key config.batchsize (did you mean config.batch_size?)"),
        ("config.batch_size = 'x'", "line 11: TypeError: Could not override field 'batch_size'"),
        ("config.total_steps = 9", "config.total_steps and config.total_epochs are the same duration"),
        ("1 / 0", "line 11: ZeroDivisionError: division by zero"),
        ("{}['a']", "line 11: KeyError: 'a'"),
        ("import lape", "line 11: ModuleNotFoundError: No module named 'lape'"),
        ("x = = 1", "line 11: invalid syntax"),
        ("return None", "returned NoneType: it must return a ConfigDict"),
    ],
)
def test_broken_config_files(run, tmp_path, line, message):
    lines = CONFIG.splitlines()
    lines.insert(10, f"    {line}")
    path = tmp_path / "broken.py"
    path.write_text("\n".join(lines))
    code, _, _, err = run(f"--config={path}")
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_config_file_without_get_config(run, tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert "has no get_config(arg) function" in run(f"--config={tmp_path / 'empty.py'}")[-1]


def test_what_main_raises(run, file):
    def fail(error):
        def main(config, args):
            raise error

        return main

    assert run(f"--config={file}", main=fail(UserError("no such\nthing")))[::3] == (2, "error: no such thing\n")
    assert run(f"--config={file}", main=fail(KeyboardInterrupt()))[::3] == (130, "interrupted\n")
    with pytest.raises(ZeroDivisionError):
        run(f"--config={file}", main=fail(ZeroDivisionError()))


def test_help(run, capsys):
    with pytest.raises(SystemExit) as exit:
        run("--help", description="Trains.", options=weights)
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("Trains.", "--config", "--workdir", "--weights", "--config.optimizer.lr"))


@pytest.mark.slow
def test_logs_in_a_process_of_its_own(file):
    script = f"""
import logging, sys
from absl import logging as absl_logging
from lape_jax import cli
logging.basicConfig()  # as a library does that logs while it is imported
def main(config, args):
    logging.getLogger("lape_jax.data").warning("skipped %s", "a.png")
    logging.getLogger("jax._src.xla_bridge").info("spam")
    logging.getLogger("absl").info("spam")
    absl_logging.info("spam")
    absl_logging.warning("careful")
sys.exit(cli.run(main, ["--config={file}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: skipped a.png\nwarning: careful\n"
    assert done.stdout == ""


def test_arguments_that_are_no_options(run, file):
    """Wherever they stand; with commands that take none they are refused."""
    code, _, args, err = run("a.png", f"--config={file}", "--config.seed", "3", "~/b", "--", "-c.png", options=images)
    assert code == 0, err
    assert args.files == ["a.png", str(Path.home() / "b"), "-c.png"]
    code, _, _, err = run(f"--config={file}", options=images)
    assert (code, err) == (2, "error: the following arguments are required: FILE\n")
    code, _, _, err = run(f"--config={file}", "a.png")
    assert (code, err.startswith("error: option 'a.png'")) == (2, True)
    code, _, _, err = run("a.png", "--confg=x", options=images)
    assert (code, "did you mean '--config'" in err) == (2, True)
