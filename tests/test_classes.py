"""A number belongs to a name: what was trained is used on data, and read from files, that number classes otherwise."""

import json
import shutil

import numpy as np
import pytest

from lape_jax import cli, convert, evaluate, export, predict
from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.port import about
from tests import runs

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run that has learned digits."""
    return runs.finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All validation digits as val/CLASS/NAME.png, and nothing else."""
    root = runs.write_png_folder(tmp_path_factory.mktemp("digits"))
    shutil.rmtree(root / "train")
    return root


def renamed(folder, to, names):
    """A copy whose class directories have other names."""
    root = shutil.copytree(folder, to / "renamed")
    for number in range(len(names)):
        (root / "val" / str(number)).rename(root / "val" / f"_{number}")
    for number, name in enumerate(names):
        if name is None:
            shutil.rmtree(root / "val" / f"_{number}")
        else:
            (root / "val" / f"_{number}").rename(root / "val" / name)
    return root


def command(module, *argv):
    with runs.on(1):
        return cli.run(module.main, argv, options=module.options)


def data(root):
    return "--config.data.source=folder", f"--config.data.path={root}"


def evaluated(capsys, workdir, *argv):
    code = command(evaluate, f"--workdir={workdir}", *argv)
    out, error = capsys.readouterr()
    assert code == 0, error
    return json.loads(out.splitlines()[-1]), error


@pytest.fixture(scope="module")
def right(workdir):
    return {name: value for name, value in runs.metrics(workdir)[-1].items() if name in ("val/top1", "val/examples")}


def test_only_val_is_there(workdir, folder, right, capsys):
    results, error = evaluated(capsys, workdir, *data(folder))
    assert {name: results[name] for name in right} == right
    assert error == ""


def test_some_of_the_classes(workdir, folder, tmp_path, capsys, caplog):
    root = renamed(folder, tmp_path, [str(n) if n in (3, 8) else None for n in range(10)])
    results, _ = evaluated(capsys, workdir, *data(root))
    labels = sources.digits("val").labels
    assert results["val/examples"] == np.isin(labels, (3, 8)).sum()
    assert "2 of the 10 classes that the run in" in caplog.text


def test_more_classes_than_were_learned(workdir, folder, tmp_path, right, capsys, caplog):
    root = shutil.copytree(folder, tmp_path / "more")
    shutil.copytree(root / "val" / "3", root / "val" / "00 before all others")
    results, _ = evaluated(capsys, workdir, *data(root))
    assert {name: results[name] for name in right} == right
    assert "which are left out: 00 before all others" in caplog.text


def test_other_names_are_refused_unless_order_is_asked_for(workdir, folder, tmp_path, right, capsys, caplog):
    root = renamed(folder, tmp_path, [f"{number} {word}" for number, word in enumerate(WORDS)])
    assert command(evaluate, f"--workdir={workdir}", *data(root)) == 2
    error = capsys.readouterr().err
    assert "has classes that the run in" in error
    assert "0 zero" in error
    assert "--config.data.match=order" in error
    results, _ = evaluated(capsys, workdir, *data(root), "--config.data.match=order")
    assert {name: results[name] for name in right} == right
    assert "by their order" in caplog.text


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """The run's last weights as a file that says what it is of."""
    path = tmp_path_factory.mktemp("exported") / "digits.safetensors"
    assert command(export, f"--workdir={workdir}", f"--out={path}", "--step=last") == 0
    return path


def of(exported, workdir, *argv):
    return f"--weights={exported}", f"--config={runs.DIGITS}", *argv


def test_a_file_says_which_classes_it_knows(exported, workdir, folder, tmp_path, right, capsys):
    """Beside data whose folders sort otherwise, and without any training data."""
    assert about.read(exported).classes == tuple(map(str, range(10)))
    assert command(evaluate, *of(exported, workdir, *data(folder))) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["val/top1"] == right["val/top1"]
    image = next((folder / "val" / "7").iterdir())
    assert command(predict, str(image), *of(exported, workdir, f"--out={tmp_path}", *data(tmp_path / "no"))) == 0
    line = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert all(one["class"] == str(one["number"]) for one in line["top"])


def test_a_file_says_how_images_are_normalised_and_what_its_model_is(exported, workdir, folder, right, capsys, caplog):
    config = ("--config.data.mean=(0.5,)", "--config.data.std=(0.5,)")
    assert command(evaluate, *of(exported, workdir, *data(folder), *config)) == 0  # says the same
    capsys.readouterr()
    for setting, said in (
        ("data.mean=(0.4,)", r"--config.data.mean=(0.4,) contradicts"),
        ("model.heads=4", "--config.model.heads=4 contradicts"),
        ("model.pe_norm=norm", "--config.model.pe_norm=norm contradicts"),
    ):
        assert command(evaluate, *of(exported, workdir, *data(folder), f"--config.{setting}")) == 2
        assert said in capsys.readouterr().err
    other = f"{runs.DIGITS},model=vit_lite_6_4"
    assert command(evaluate, f"--weights={exported}", f"--config={other}", *data(folder)) == 2
    assert "holds weights of vit_micro, and the config is one of vit_lite_6_4" in capsys.readouterr().err


def test_what_the_config_file_says_otherwise_gives_way_and_is_said(exported, folder, tmp_path, right, capsys, caplog):
    config = tmp_path / "other.py"
    text = (runs.ROOT / "configs" / "digits.py").read_text()
    config.write_text(
        text.replace("config.data.mean = (0.5,)", "config.data.mean = (0.1,)").replace('"heads": 2', '"heads": 4')
    )
    argv = (f"--weights={exported}", f"--config={config}:debug", *data(folder))
    assert command(evaluate, *argv) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["val/top1"] == right["val/top1"]
    assert "model.heads 2" in caplog.text
    assert "data.mean (0.5,)" in caplog.text


def test_convert_says_it_too(workdir, tmp_path):
    path = tmp_path / "converted.safetensors"
    with runs.on(1):
        convert.main([str(workdir), str(path)])
    assert about.read(path).classes == tuple(map(str, range(10)))
    again = tmp_path / "again.safetensors"
    with runs.on(1):
        convert.main(
            [
                str(path),
                str(again),
                "--model=vit_micro",
                "--model.patch_size=2",
                "--model.heads=2",
                "--model.mlp_ratio=4.0",
            ]
        )
    assert about.read(again) == about.read(path)
    with pytest.raises(UserError, match=r"--model.heads=4 contradicts .*, which says 2: leave"):
        convert.main([str(path), str(again), "--model.heads=4"])
    with pytest.raises(UserError, match=r"--model=deit_ti contradicts .*, which holds weights of vit_micro"):
        convert.main([str(path), str(again), "--model=deit_ti"])


@pytest.mark.slow
def test_a_run_of_another_mesh(workdir, tmp_path, folder, capsys):
    """Trained over fsdp=2 it is used on one device, and trained on one device it is used on eight."""
    elsewhere = runs.copy(workdir, tmp_path)
    config = json.loads((elsewhere / "config.json").read_text())
    for mesh, devices in (({"data": 1, "fsdp": 2, "tensor": 1}, 1), ({"data": 1, "fsdp": 1, "tensor": 1}, 8)):
        (elsewhere / "config.json").write_text(json.dumps(config | {"mesh": mesh}))
        with runs.on(devices):
            assert cli.run(evaluate.main, [f"--workdir={elsewhere}"], options=evaluate.options) == 0
            argv = [f"--workdir={elsewhere}", f"--out={tmp_path / 'out.npz'}"]
            assert cli.run(export.main, argv, options=export.options) == 0
            image = next((folder / "val" / "7").iterdir())
            argv = [str(image), f"--workdir={elsewhere}", f"--out={tmp_path / 'out'}"]
            assert cli.run(predict.main, argv, options=predict.options) == 0
            assert (
                cli.run(evaluate.main, [f"--workdir={elsewhere}", "--config.mesh.fsdp=3"], options=evaluate.options)
                == 2
            )
        assert "does not fit" in capsys.readouterr().err
