"""Teachers from files and workdirs: which one is taken, where it lies, and what is said of those that do not fit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.config.reading import to_json
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.config import base, from_json
from lape_jax.train import optim, setup, teacher, trained
from lape_jax.train import state as states
from lape_jax.train.checkpoint import Checkpoints
from tests.quick import jit

CLASSES = tuple("0123456789")


def config_of(distilled=False, path="", model="", **data):
    config = base()
    config.model.update({"name": "vit_micro", "width": 8, "depth": 1, "heads": 2, "distilled": distilled})
    config.data.update({"image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,), **data})
    config.distill.teacher, config.distill.model = str(path), model
    return config


def load(config, classes=CLASSES, devices=1):
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return teacher.load(config, setup.build_model(config, len(classes)), classes, mesh)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run whose weights are its step everywhere; step 2 was the best one, step 3 is the newest."""
    path = tmp_path_factory.mktemp("teacher")
    config = config_of()
    config.model.width, config.ema_decay, config.dtype, config.model.dtype = 12, 0.9, "float32", "float32"
    (path / "config.json").write_text(to_json(config))
    (path / "data.json").write_text(json.dumps({"train": 3, "val": 3, "classes": CLASSES}))
    model = setup.build_model(config, len(CLASSES))
    tx = optim.make(config.optimizer, model.param_shapes(), float, model.no_weight_decay)
    state = jit(states.initialiser(model, tx, ema=True, task=TASKS["classify"]))(jax.random.key(0))
    with Checkpoints(path) as checkpoints:
        for step, top1 in ((1, 50.0), (2, 60.0), (3, None)):
            state = state.replace(params=jax.tree.map(lambda x, n=step: jnp.full_like(x, n), state.params))
            checkpoints.save(step, state, top1 and {"val/top1": top1})
    return path


def values(variables):
    return {float(x) for leaf in jax.tree.leaves(variables) for x in np.unique(leaf)}


def copy(workdir, tmp_path, **data):
    """A copy of the workdir, whose config has other `data`."""
    path = shutil.copytree(workdir, tmp_path / "copy")
    config = from_json(path / "config.json")
    config.data.update(data)
    (path / "config.json").write_text(to_json(config))
    return path


def test_no_teacher():
    assert load(config_of()) is None
    with pytest.raises(UserError, match=r"has a distillation token, .* but config.distill.teacher is empty"):
        load(config_of(distilled=True))


@pytest.mark.slow
def test_the_best_checkpoint_of_a_run_teaches_and_lies_on_every_device(workdir):
    config = config_of(distilled=True, path=workdir)
    config.dtype = "bfloat16"
    before = sorted(workdir.rglob("*"))
    model, variables = load(config, devices=4)
    assert (model.width, model.distilled, model.dtype) == (12, False, jnp.bfloat16)
    assert variables.keys() == {"params"}
    assert values(variables) == {2.0}
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 4
    assert sorted(workdir.rglob("*")) == before


def test_the_newest_one_teaches_if_none_was_evaluated(workdir, tmp_path):
    path = copy(workdir, tmp_path)
    for step in (1, 2):
        shutil.rmtree(path / "checkpoints" / str(step))
    _, variables = load(config_of(distilled=True, path=path))
    assert values(variables) == {3.0}
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(UserError, match=r"the teacher in '.*copy' has no checkpoints"):
        load(config_of(distilled=True, path=path))


def test_a_file_teaches_from_every_device(tmp_path):
    model = models.create("vit_micro", image_size=8, in_channels=1, num_classes=10)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float16), model.param_shapes())
    port.save(tmp_path / "teacher.npz", {"params": params}, model)
    model, variables = load(
        config_of(distilled=True, path=tmp_path / "teacher.npz", model="vit_micro"),
        devices=2,
    )
    assert model.width == 64
    assert values(variables) == {0.5}
    leaf = variables["params"]["head"]["kernel"]
    assert leaf.dtype == jnp.float32
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.sharding.device_set) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_size": 16}, r"the teacher in '.*' was trained with data.image_size 16, and this run has 8: the two"),
        (
            {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3},
            "was trained with data.channels 3, and this run has 1",
        ),
        ({"mean": (0.4,)}, r"was trained with data.mean \(0.4,\), and this run has \(0.5,\)"),
        ({"std": (0.4,)}, r"was trained with data.std \(0.4,\), and this run has \(0.5,\)"),
    ],
)
def test_other_images_are_user_errors(workdir, tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        load(config_of(distilled=True, path=copy(workdir, tmp_path, **data)))


def test_a_run_that_segments_is_a_user_error(workdir, tmp_path):
    path = copy(workdir, tmp_path)
    config = from_json(path / "config.json")
    config.task = "segment"
    (path / "config.json").write_text(to_json(config))
    with pytest.raises(
        UserError, match=r"the teacher in '.*copy' has learned the task 'segment', and this run learns 'classify'"
    ):
        load(config_of(distilled=True, path=path))


def test_other_classes_are_user_errors(workdir, tmp_path):
    config = config_of(distilled=True, path=workdir)
    with pytest.raises(UserError, match=r"the teacher in '.*' knows 10 classes, and the data have 3: it must"):
        load(config, classes=("0", "1", "2"))
    with pytest.raises(
        UserError, match=r"class 1 of the teacher in '.*' is '1', and that of the data is 'one': it must"
    ):
        load(config, classes=("0", "one", *CLASSES[2:]))
    path = copy(workdir, tmp_path)
    (path / "data.json").unlink()
    with pytest.raises(UserError, match=r"data.json' does not say which classes the teacher knows"):
        load(config_of(distilled=True, path=path))


def test_a_directory_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match=r"no config at '.*config.json': is it the workdir of a run\?"):
        load(config_of(distilled=True, path=tmp_path))


def test_which_checkpoint_commands_take(workdir, tmp_path):
    """The best, or the newest if none was evaluated, unless they are told; and they say why."""
    none = shutil.copytree(workdir, tmp_path / "none")
    for step in ("1", "2"):
        shutil.rmtree(none / "checkpoints" / step)

    def taken(path, step=None):
        found = trained.of_run(path, step=step)
        assert values(found.variables["params"]) == {found.step}
        return found.origin.removeprefix(f"the run in {path}: ")

    assert taken(workdir) == taken(workdir, trained.BEST) == "step 2, the best that was evaluated"
    assert taken(workdir, trained.LAST) == "step 3, the newest"
    assert taken(workdir, 1) == "step 1, as asked"
    assert taken(none) == "step 3, the newest, as none was evaluated"
    with pytest.raises(UserError, match=r"no checkpoint in .* was evaluated: use --step=last"):
        taken(none, trained.BEST)
