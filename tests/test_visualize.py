"""The command that draws what models make of their position embeddings, in process."""

import shutil

import numpy as np
import pytest
from PIL import Image

from lape_jax import cli, port, visualize
from lape_jax.analysis import correlation, plots
from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks.config import from_json
from lape_jax.tasks.segment import digits as digit_scenes
from lape_jax.tasks.segment import overlays
from lape_jax.tasks.task import Candidate
from lape_jax.train import trained
from tests import runs, scene_run
from tests.port.tiny import TINY, random_variables, tiny

SIZES = [f"--model.{key}={value}" for key, value in TINY.items()]
FIGURES = ["correlation_token", "correlation_overall", "locality", "lambda"]


def visualize_(*argv):
    with runs.on(1):
        visualize.main([str(arg) for arg in argv])


def files(out):
    return sorted(path.name for path in out.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def undrawn(monkeypatch):
    """Files of figures name their form: to draw them takes most of the time. (tests/analysis/test_study.py does.)"""
    monkeypatch.setattr(plots, "render", lambda figure, form: form.encode())


@pytest.mark.usefixtures("undrawn")
def test_runs_side_by_side(run, tmp_path, capsys):
    copy = runs.copy(run, tmp_path)
    visualize_("--workdir", run, copy, f"--out={tmp_path / 'out'}", "--images=40", "--step=best", "--token=0")
    out = capsys.readouterr().out
    assert f"lape, learnable ({run})\n" in out
    assert f"lape, learnable ({copy})\n" in out
    assert "numbers.npz" in out
    expected = [f"{name}.{form}" for name in FIGURES for form in ("png", "pdf")] + ["numbers.npz"]
    assert files(tmp_path / "out") == sorted(expected)
    config = from_json(run / "config.json")
    with runs.on(1):
        found = trained.of_run(run, config, mesh=sharding.make_mesh(config.mesh))
        model, variables = found.model, found.variables
        maps = correlation.maps(model, variables)
    with np.load(tmp_path / "out" / "numbers.npz") as numbers:
        assert len(numbers["labels"]) == 2
        for layer, one in enumerate(maps, start=1):
            np.testing.assert_array_equal(numbers[f"0/layer{layer}/correlation"], one.values)
        assert numbers["1/token_pe_ratio"].shape == (2,)
        np.testing.assert_array_equal(numbers["0/token_pe_ratio"], numbers["1/token_pe_ratio"])


@pytest.mark.slow
def test_a_file_of_weights(tmp_path, capsys):
    model = tiny(join="default", image_size=(24, 32))
    variables = random_variables(model)
    port.save(tmp_path / "w.npz", variables, model)
    sizes = [option for option in SIZES if "image_size" not in option]
    argv = ["--weights", tmp_path / "w.npz", "--model=deit_ti", *sizes, "--model.image_size=(24, 32)"]
    visualize_(*argv, "--out", tmp_path / "out", "--layers=2", "--eps=1")
    assert capsys.readouterr().out.startswith("deit_ti, default, learnable\n")
    assert not [name for name in files(tmp_path / "out") if "lambda" in name]
    with np.load(tmp_path / "out" / "numbers.npz") as numbers:
        expected = correlation.maps(model, variables, eps=1.0)[1].values
        np.testing.assert_array_equal(numbers["0/layer2/correlation"], expected)


def test_images_from_all_over_the_set(run):
    """A third of them, in batches of one size and a last one, normalised with the run's mean and deviation."""
    config = from_json(run / "config.json")
    source = sources.open_split(config.data, "val")
    count = len(source) // 3
    batches = [np.asarray(batch) for batch in visualize.validation_images(of(config), count)]
    assert [len(batch) for batch in batches] == [32, 32, 32, 23]
    images = np.concatenate(batches)
    for index in (0, 1, count - 1):
        expected = (source[index * len(source) // count].image / 255 - 0.5) / 0.5
        np.testing.assert_allclose(images[index], expected, rtol=0, atol=1e-6)
    labels = {source[index * len(source) // count].label for index in range(count)}
    assert labels == set(range(10))
    assert sum(len(batch) for batch in visualize.validation_images(of(config), 10_000)) == len(source)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_runs_that_segment(run, tmp_path, tmp_path_factory, monkeypatch):
    """Beside each other and a run that classifies, with their maps of labels."""
    base = tmp_path_factory.getbasetemp()
    segmenters = [scene_run.workdir(base / "scenes"), scene_run.workdir(base / "default_scenes", join="default")]
    drawn = []
    comparison = overlays.comparison
    monkeypatch.setattr(overlays, "comparison", lambda *args: drawn.append(args) or comparison(*args))
    visualize_("--workdir", *segmenters, run, f"--out={tmp_path / 'out'}", "--images=6")
    names = [*FIGURES, "overlays"]
    expected = [f"{name}.{form}" for name in names for form in ("png", "pdf")] + ["numbers.npz"]
    assert files(tmp_path / "out") == sorted(expected)
    ((rows, classes, titles, names),) = drawn
    assert (len(rows), len(classes)) == (8, 11)
    assert titles == [f"lape, learnable ({segmenters[0]})", "default, learnable"]
    assert names == [f"digits val[{index * 29 // 8}]" for index in range(8)]
    for row, index in zip(rows, (0, 3), strict=False):
        scene = digit_scenes.DigitScenes("val")[index]
        np.testing.assert_array_equal(row[0], scene.image)
        np.testing.assert_array_equal(row[1], scene.mask)
    with np.load(tmp_path / "out" / "numbers.npz") as numbers:
        assert numbers["0/layer1/grid"].tolist() == numbers["2/layer1/grid"].tolist() == [4, 4]
        assert numbers["1/layer2/lambda"].shape == (3, 16)
        assert np.isfinite(numbers["0/token_pe_ratio"]).all()
    visualize_("--workdir", segmenters[0], f"--out={tmp_path / 'none'}", "--images=0")
    assert not [name for name in files(tmp_path / "none") if "overlays" in name]


CLASSES = tuple(digit_scenes.DigitScenes.classes)


def of(config):
    """A run without its weights."""
    return Candidate(config, "model", {}, CLASSES)


def test_the_window_in_the_middle_of_a_scene(tmp_path_factory):
    """Its shorter side, 48 pixels, becomes that of the window, 32."""
    config = from_json(scene_run.workdir(tmp_path_factory.getbasetemp() / "scenes") / "config.json")
    batches = [np.asarray(batch) for batch in visualize.validation_images(of(config), 6)]
    assert [batch.shape for batch in batches] == [(4, 32, 32, 3), (2, 32, 32, 3)]
    image = Image.fromarray(digit_scenes.DigitScenes("val")[0].image).resize((42, 32), Image.Resampling.BICUBIC)
    expected = (np.asarray(image)[:, 5:37] / 255 - np.array(config.data.mean)) / np.array(config.data.std)
    np.testing.assert_allclose(batches[0][0], expected, rtol=0, atol=1e-5)


def test_runs_that_segment_other_images():
    one, other = scene_run.config(), scene_run.config()
    other.data.val_split = "other"
    runs_ = {name: of(config) for name, config in (("a", one), ("b", other))}
    with pytest.raises(UserError, match=r"data\.val_split is 'val' and 'other' \(--images=0 does without\)"):
        visualize.comparisons(runs_, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workdir={run}"], "required: --out"),
        (["--out={out}"], "give either --workdir=DIR .* or --weights=FILE"),
        (["--workdir={run}", "--weights=w.npz", "--out={out}"], "give either"),
        (["--workdir={run}", "--model=deit_ti", "--out={out}"], "leave out --model"),
        (["--workdir={run}", "--model.join=lape", "--out={out}"], "leave out --model"),
        (["--weights=w.npz", "--out={out}"], "--model=NAME is missing"),
        (["--weights=w.npz", "--model=deit_ti", "--images=3", "--out={out}"], "--overlays are of a run"),
        (["--weights=none.npz", "--model=deit_ti", "--out={out}"], "none.npz"),
        (["--workdir={out}", "--out={out}"], "is it the workdir of a run"),
        (["--workdir={run}", "--step=7", "--out={out}"], "7"),
        (["--workdir={run}", "--layers=8-2", "--out={out}"], "--layers is '8-2': it must be numbers of layers"),
        (["--workdir={run}", "--layers=all", "--out={out}"], "--layers is 'all'"),
        (["--workdir={run}", "--layers=9", "--images=0", "--out={out}"], "layer 9 is not one of the 2 layers"),
        (["--workdir={run}", "--token=16", "--images=0", "--out={out}"], "token=16 is not one of the 16 patches"),
        (["--workdir={run}", "--token=middle", "--out={out}"], "--token is 'middle': it must be a whole number"),
        (["--workdir={run}", "--images=-1", "--out={out}"], "--images is '-1': it must be a whole number"),
        (["--workdir={run}", "--eps=nan", "--out={out}"], "--eps is 'nan': it must be a finite number"),
        (["--workdir", "{run}", "{run}", "--images=0", "--out={out}"], "is there twice"),
        (["--workdir={run}", "--images=0", "--out={run}/config.json"], "config.json cannot be made"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_mistakes(run, options, message, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        visualize_(*(option.format(run=run, out=out) for option in options))
    assert not out.exists()


@pytest.mark.usefixtures("undrawn")
def test_data_that_are_gone(run, tmp_path):
    copy = runs.copy(run, tmp_path)
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(
        text.replace('"source": "digits"', '"source": "folder"').replace('"path": ""', f'"path": "{tmp_path / "gone"}"')
    )
    with pytest.raises(UserError, match=r"gone.*\(--images=0 does without\)"):
        visualize_("--workdir", copy, f"--out={tmp_path / 'out'}")
    visualize_("--workdir", copy, f"--out={tmp_path / 'out'}", "--images=0")
    assert not [name for name in files(tmp_path / "out") if "lambda" in name]
    shutil.rmtree(copy)


def test_exit_code(capsys):
    code, error = cli.exit_code(lambda: visualize.main(["--out=x"])), capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: give either")
