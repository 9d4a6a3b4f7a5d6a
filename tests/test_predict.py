"""The command that predicts on a user's images, in process: what it prints and writes, leaves out and refuses."""

import csv
import io
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lape_jax import cli, port, predict
from lape_jax.augment.photometric import normalise
from lape_jax.data import sources
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks.classes import palette
from lape_jax.tasks.config import from_json
from lape_jax.tasks.segment import masks, overlays
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.tasks.segment.scene import Scene
from lape_jax.train import trained
from tests import quick, runs, scene_run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Workdir, config, model and variables of a run that has learned to classify."""
    return best(runs.finished(tmp_path_factory.getbasetemp()), 10)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The same of one that segments."""
    return best(scene_run.workdir(tmp_path_factory.getbasetemp() / "scenes"), 11)


def best(workdir, classes):
    config = from_json(workdir / "config.json")
    with runs.on(1):
        found = trained.of_run(workdir, config, mesh=sharding.make_mesh(config.mesh))
        model, variables = found.model, found.variables
    return workdir, config, model, jax.device_get(variables)


def run(made, *files, devices=1, **options):
    args = runs.options(predict, files, **{"workdir": made[0], **options})
    with runs.on(devices):
        predict.main(made[1], args)


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture
def folder(tmp_path):
    """Five digits, in folder/a.png, folder/sub/b.png and so on."""
    source = sources.digits("val")
    for index, name in enumerate(("a.png", "sub/b.png", "sub/deep/c.PNG", "d.png", ".hidden.png", "e.png")):
        runs.write_png(tmp_path / "folder" / name, source[index].image)
    return tmp_path / "folder"


@pytest.mark.parametrize(("devices", "size"), quick.first(1, [(8, 3), (1, 2)]))
def test_top_five(digits, folder, tmp_path, capsys, devices, size):
    """In batches of which the last is not full."""
    workdir, config, model, variables = digits
    config = config.copy_and_resolve_references()
    config.eval_batch_size = size
    run((workdir, config), folder, devices=devices, out=str(tmp_path / "out"))
    names = ["a.png", "d.png", "e.png", "sub/b.png", "sub/deep/c.PNG"]
    images = np.stack([sources.digits("val")[index].image for index in (0, 3, 5, 1, 2)])
    logits = np.asarray(
        quick.jit(model.apply)(variables, normalise(jnp.asarray(images), (0.5,), (0.5,)))[0], np.float64
    )
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(folder / name) for name in names]
    for line, row in zip(lines, expected, strict=True):
        order = np.argsort(-row)[:5]
        assert [one["number"] for one in line["top"]] == order.tolist()
        assert [one["class"] for one in line["top"]] == [str(number) for number in order]
        np.testing.assert_allclose([one["probability"] for one in line["top"]], row[order], rtol=1e-4)
    head, *table = csv.reader((tmp_path / "out" / "predictions.csv").read_text().splitlines())
    assert head[:4] == ["image", "class1", "probability1", "class2"]
    for row, line in zip(table, lines, strict=True):
        assert row == [line["image"], *(f"{x}" for o in line["top"] for x in (o["class"], f"{o['probability']:.6f}"))]
    top = lines[0]["top"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"the run in {workdir}: step ")
    assert printed[0].endswith(", the best that was evaluated")
    assert printed[1].startswith(f"{folder / 'a.png'}: {top[0]['class']} {100 * top[0]['probability']:.1f}%, ")
    assert printed[-1] == f"{tmp_path / 'out'}: 5 of 5 images"


def test_images_are_resized_and_cut_as_in_evaluation(digits, tmp_path):
    """Of a colour JPEG of another size: grey, its shorter side as long as the model's images, the middle."""
    _, config, model, variables = digits
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    image.save(tmp_path / "a.jpg")
    run(digits, tmp_path / "a.jpg", out=str(tmp_path / "out"))
    grey = np.asarray(opened(tmp_path / "a.jpg").convert("L").resize((13, 8), Image.Resampling.BICUBIC))
    square = normalise(jnp.asarray(grey[None, :, 2:10, None]), config.data.mean, config.data.std)
    expected = jax.nn.softmax(quick.jit(model.apply)(variables, square)[0])[0]
    (line,) = map(json.loads, (tmp_path / "out" / "predictions.jsonl").read_text().splitlines())
    assert line["top"][0]["probability"] == pytest.approx(float(expected.max()), rel=1e-4)


def test_the_running_mean_predicts_otherwise(digits, folder, tmp_path):
    run(digits, folder / "a.png", out=str(tmp_path / "own"))
    run(digits, folder / "a.png", out=str(tmp_path / "mean"), ema="true")
    own, mean = ((tmp_path / name / "predictions.csv").read_text() for name in ("own", "mean"))
    assert own != mean


def test_what_cannot_be_read_is_named_and_left_out(digits, folder, tmp_path, caplog):
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "empty.jpg").touch()
    with (
        caplog.at_level(logging.WARNING, "lape_jax"),
        pytest.raises(UserError, match=r"^2 of 7 images cannot be read"),
    ):
        run(digits, folder, out=str(tmp_path / "out"))
    assert [record.getMessage().split(" cannot be read")[0] for record in caplog.records] == [
        str(folder / "broken.png"),
        str(folder / "empty.jpg"),
    ]
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 5


def test_names_that_are_no_text(digits, folder, tmp_path, monkeypatch):
    """They stand as escapes in what is printed and written; JSON gives the name back."""
    image = folder / "caf\udce9.png"  # as Python calls b"caf\xe9.png"
    (folder / "a.png").rename(image)
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", printed)
    monkeypatch.setattr(cli, "quiet_logs", lambda: None)
    assert cli.exit_code(lambda: run(digits, folder, out=str(tmp_path / "out"))) == 0
    printed.flush()
    assert b"caf\\udce9.png: " in printed.buffer.getvalue()
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    images = [json.loads(line)["image"].encode("utf-8", "surrogateescape") for line in lines]
    assert len(images) == 5
    place = images.index(bytes(image))
    rows = list(csv.reader((tmp_path / "out/predictions.csv").read_text().splitlines()))
    assert rows[place + 1][0].endswith(r"/caf\udce9.png")


def test_what_was_predicted_stays_when_the_rest_fails(digits, folder, tmp_path, monkeypatch):
    """As after a kill: every line is there as soon as it is printed."""
    counts = []

    def look(line, **_):
        if line.startswith("the run in "):
            return
        counts.append([len(path.read_text().splitlines()) for path in sorted((tmp_path / "out").iterdir())])
        if len(counts) == 2:
            raise MemoryError

    monkeypatch.setattr("builtins.print", look)
    with pytest.raises(MemoryError):
        run(digits, folder, out=str(tmp_path / "out"))
    assert counts == [[2, 1], [3, 2]]
    assert len(list(csv.reader((tmp_path / "out/predictions.csv").read_text().splitlines()))) == 3


def test_images_are_predicted_as_they_are_viewed(digits, tmp_path):
    """EXIF or not, with the run's orientation=view; a run that says "stored" does not follow it."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)).resize((56, 36))
    note = Image.Exif()
    note[0x0112] = 6
    pixels.save(tmp_path / "noted.png", exif=note)
    pixels.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    pixels.save(tmp_path / "plain.png")
    images = [tmp_path / f"{name}.png" for name in ("noted", "upright", "plain")]

    def top(orientation):
        digits[1].data.orientation = orientation
        run(digits, *images, out=str(tmp_path / orientation))
        lines = (tmp_path / orientation / "predictions.jsonl").read_text().splitlines()
        return [json.loads(line)["top"] for line in lines]

    noted, upright, plain = top("view")
    assert noted == upright != plain
    noted, upright, plain = top("stored")
    assert noted == plain != upright


def test_too_few_bits_are_said(digits, tmp_path, caplog):
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "x.png")
    run(digits, tmp_path / "x.png", out=str(tmp_path / "out"))
    assert f"{tmp_path}/x.png: nearly black, as the upper 2 of 16 bits are not used" in caplog.text


@pytest.fixture
def photos(tmp_path):
    """A grey PNG, a large JPEG, a broken file, and a small one with a dot in its name."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(smooth).resize((90, 70)).save(folder / "a.jpg", quality=95)
    Image.fromarray(smooth[..., 0]).resize((30, 50)).save(folder / "sub" / "b.c.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_maps_and_overlays(scenes, photos, tmp_path, capsys, caplog):
    _, config, model, variables = scenes
    out = tmp_path / "out"
    Image.new("RGB", (6000, 1)).save(photos / "narrow.png")  # as high as a window it would have 8,000 windows
    with pytest.raises(UserError, match=r"^2 of 4 images cannot be read"):
        run(scenes, photos, out=str(out))
    printed = capsys.readouterr().out
    for name, reason in {"broken": "not a JPEG, PNG", "narrow": "6000 x 1 pixels .* too narrow"}.items():
        assert re.search(f"{name}.png cannot be read: .*{reason}", caplog.text)
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    maps = {"a.png": "a.jpg", "sub/b.c.png": "sub/b.c.png"}
    shown = {name.replace(".png", "_overlay.png") for name in maps}
    assert written == {*maps, *shown, "legend.png", "classes.txt"}
    classes = (out / "classes.txt").read_text().splitlines()
    assert classes == ["paper", *map(str, range(10))]
    colours = palette(11)
    with runs.on(1):
        evaluator = SceneEvaluator(model, config, sharding.make_mesh(config.mesh), None)
    for name, image in maps.items():
        pixels = opened(photos / image).convert("RGB")
        size, pixels = pixels.size, np.asarray(pixels)
        with runs.on(1):
            (expected,) = evaluator.maps(variables, [pixels])
        assert len(np.unique(expected)) > 1
        found = opened(out / name)
        assert (found.mode, found.size) == ("P", size)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found.convert("RGB"), colours[expected])
        over = opened(out / name.replace(".png", "_overlay.png"))
        np.testing.assert_array_equal(over, overlays.overlay(pixels, expected, colours))
        # It can be used as the map of labels of a data set in a folder with this classes.txt.
        scene = Scene(pixels, (out / name).read_bytes(), name)
        np.testing.assert_array_equal(masks.decode_scene(scene, 3, len(classes))[1], expected)
        pixels_of = np.bincount(expected.ravel())
        assert (
            f"{photos / image}: {classes[pixels_of.argmax()]} {100 * pixels_of.max() / expected.size:.1f}%" in printed
        )


def test_again_in_the_same_place(scenes, photos):
    """What lies in --out is neither an image to predict nor in the way."""
    (photos / "broken.png").unlink()
    out = photos / "out"
    run(scenes, photos, out=str(out))
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    run(scenes, photos, out=str(out))
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
    assert len(before) == 5


def test_no_file_of_the_user_is_written_over(scenes, photos):
    run(scenes, photos / "a.jpg", out=str(photos))  # a.png is new there
    content = (photos / "a.png").read_bytes()
    for image in ("a.png", "a.jpg"):
        with pytest.raises(UserError, match=r"a\.png is there already, beside an image: use another --out"):
            run(scenes, photos / image, out=str(photos))
    assert (photos / "a.png").read_bytes() == content
    other = photos / "sub" / "a.jpg"
    other.write_bytes((photos / "a.jpg").read_bytes())
    with pytest.raises(UserError, match=r"a\.jpg\.png would be of .*a\.jpg and of .*sub/a\.jpg: predict them into two"):
        run(scenes, photos / "a.jpg", other, out=str(photos / "out"))
    (photos / "a.jpg").rename(photos / "legend.jpg")
    with pytest.raises(UserError, match=r"legend\.png would be of the legend and of"):
        run(scenes, photos / "legend.jpg", out=str(photos / "out"))


def test_images_of_one_name_and_several_formats(scenes, photos, tmp_path):
    with Image.open(photos / "a.jpg") as image:
        image.save(photos / "a.webp")
    run(scenes, photos / "a.jpg", photos / "a.webp", photos / "sub", out=str(tmp_path / "out"))
    found = {path.name for path in (tmp_path / "out").iterdir()} - {"legend.png", "classes.txt"}
    assert found == {f"{name}{end}" for name in ("a.jpg", "a.webp", "b.c") for end in (".png", "_overlay.png")}


def test_a_file_of_weights(scenes, photos, tmp_path):
    """Classes are those of the config's data."""
    _, config, model, variables = scenes
    port.save(tmp_path / "w.npz", variables, model)
    options = {"weights": str(tmp_path / "w.npz"), "workdir": "", "config": "c.py"}
    run((None, config), photos / "a.jpg", out=str(tmp_path / "file"), **options)
    run(scenes, photos / "a.jpg", out=str(tmp_path / "run"))
    for name in ("a.png", "classes.txt"):
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w.npz"}, "give either --workdir=DIR .* or --weights=FILE"),
        ({"workdir": ""}, "give either"),
        ({"workdir": "", "weights": "w.npz", "step": "best"}, "--step is of a run"),
        ({"workdir": "", "weights": "w.npz", "ema": "true"}, "--ema is of a run"),
        ({"config": "c.py"}, "leave out --config"),
        ({"ema": "yes"}, "--ema is 'yes': it must be true or false"),
        ({"step": "7"}, "7"),
        ({"files": ["none.png"]}, "there is no image or directory 'none.png'"),
        ({"files": ["{tmp}"]}, r"has no images \(.jpg, .jpeg, .*\), other than those in --out="),
        ({"files": ["{folder}"], "out": "{folder}"}, "has no images .* other than those in --out="),
        ({"out": "{folder}/a.png"}, "a.png cannot be made"),
    ],
)
def test_mistakes(digits, folder, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    places = {"folder": folder, "tmp": tmp_path / "empty"}
    given = {"files": ["{folder}/a.png"], "out": "{folder}/out", **options}
    filled = {
        name: [text.format(**places) for text in value] if isinstance(value, list) else value.format(**places)
        for name, value in given.items()
    }
    with pytest.raises(UserError, match=message):
        run(digits, *filled.pop("files"), **filled)
    assert not (folder / "out").exists()
