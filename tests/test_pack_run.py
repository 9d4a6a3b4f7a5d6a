"""Runs that train on a pack: interrupted, on many devices, evaluated with other classes, and what they refuse."""

import shutil

import pytest

from lape_jax import evaluate, predict, prepare
from lape_jax.errors import UserError
from lape_jax.train.loop import train_and_evaluate
from tests import runs

# A linear model, nearly, on canvases of 12 x 12 with digits of 8 x 8.
SMALL = {
    "data.source": "packed",
    "data.side": 12,
    "data.resident": False,
    "data.channels": 3,
    "data.mean": (0.5, 0.5, 0.5),
    "data.std": (0.5, 0.5, 0.5),
    "data.scale": (0.3, 1.0),
    "data.ratio": (0.75, 1.333),
    "data.crop_ratio": 1.0,
    "data.pad": 0,
    "model.depth": 1,
    "batch_size": 16,
    "eval_batch_size": 32,
    "total_steps": 8,
    "warmup_steps": 2,
    "log_steps": 2,
    "eval_steps": 4,
    "checkpoint_steps": 4,
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A folder of digits as PNG files, and the pack that the command makes of it."""
    root = tmp_path_factory.mktemp("digits")
    runs.write_png_folder(root / "folder", each=4)
    prepare.main(["pack", f"--path={root / 'folder'}", "--side=12", f"--out={root / 'pack'}", "--threads=1"])
    return root / "pack"


def config(pack, **changes):
    return runs.load(**SMALL | {"data.path": str(pack)} | changes)


@pytest.fixture(scope="module")
def whole(pack, tmp_path_factory):
    """The workdir of a run of eight steps on one device."""
    workdir = tmp_path_factory.mktemp("whole")
    runs.train(workdir, config(pack))
    return workdir


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_on_eight_devices_and_its_losses_stay(pack, whole, tmp_path):
    lines = runs.metrics(whole)
    assert {line["val/examples"] for line in lines if "val/examples" in line} == {40}
    goes_on = shutil.copytree(whole, tmp_path / "goes_on")
    shutil.rmtree(goes_on / "checkpoints" / "8")
    runs.train(goes_on, config(pack))
    assert runs.metrics(goes_on) == lines  # to the bit
    _, others = runs.train(tmp_path / "eight", config(pack), devices=8)
    assert runs.losses(others) == pytest.approx(runs.losses(lines), rel=1e-5)


@pytest.mark.slow
def test_it_is_evaluated_and_predicts(pack, whole, tmp_path, capsys):
    folder = pack.parent / "folder"
    options = runs.options(evaluate, workdir=whole, step="last")
    with runs.on(8):
        found = evaluate.evaluate(config(pack), options)
        two = tmp_path / "two"
        for name in ("3", "1"):
            shutil.copytree(folder / "val" / name, two / "val" / name)
        shutil.copytree(two / "val", two / "train")
        prepare.main(["pack", f"--path={two}", "--side=12", f"--out={tmp_path / 'pack'}", "--threads=1"])
        part = evaluate.evaluate(config(tmp_path / "pack"), options)
        arguments = runs.options(predict, [folder / "val" / "3"], workdir=whole, out=tmp_path / "predicted")
        predict.main(config(pack), arguments)
    last = runs.metrics(whole)[-1]
    assert {name: found[name] for name in last if name.startswith("val/")} == pytest.approx(
        {name: value for name, value in last.items() if name.startswith("val/")}, rel=1e-5
    )
    assert part["val/examples"] == 8
    assert capsys.readouterr().out.endswith("4 of 4 images\n")


@pytest.mark.slow
def test_its_report_shows_what_it_saw(pack, tmp_path):
    runs.train(tmp_path, config(pack, report=True, total_steps=4))
    assert "area 0.3 to 1 and ratio 0.75 to 1.33 (bicubic, device)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "figures" / "images.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.side": 16}, r"packed with side 12, and data\.side is 16: set --config\.data\.side=12"),
        ({"data.val_split": "test"}, r"split 'test' is not one of train, val"),
        ({"data.path": "gs://bucket/pack"}, r"is not on a file system"),
    ],
)
def test_mistakes_are_one_line(pack, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught, runs.on(1):
        train_and_evaluate(config(pack, **changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_packed_images_have_colours(pack):
    with pytest.raises(UserError, match=r"data\.channels is 1, but packed images have 3"):
        config(pack, **{"data.channels": 1, "data.mean": (0.5,), "data.std": (0.5,)})


def test_check_knows_a_pack_and_says_how_to_train_on_it(pack, capsys):
    prepare.main(["check", f"--path={pack}", "--all"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 40 examples of 10 classes")
    assert lines[-1].endswith("--config.data.source=packed --config.data.side=12")
    with open(next(pack.glob("val*.pixels")), "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    try:
        with pytest.raises(UserError, match="1 of the images cannot be read"):
            prepare.main(["check", f"--path={pack}", "--all", "--splits=val"])
    finally:
        with open(next(pack.glob("val*.pixels")), "r+b") as file:
            file.write(first)
    assert "val[0]: its pixels do not agree with their checksum" in capsys.readouterr().out
