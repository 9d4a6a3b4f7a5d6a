"""From a config to model and evaluation batches, and what tells one run from another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.config.reading import to_json
from lape_jax.data.sources import ArraySource
from lape_jax.errors import UserError
from lape_jax.tasks.classify import inputs
from lape_jax.tasks.config import base
from lape_jax.train import setup
from tests import runs


@pytest.fixture
def config():
    config = base()
    config.model.name = "vit_micro"
    config.model.patch_size = 2
    config.data.image_size = 8
    config.data.channels = 1
    config.data.crop_ratio = 1.0
    return config


def test_the_model_takes_from_data_and_config_what_they_imply(config):
    config.dtype = "bfloat16"
    config.model.join = "shared"
    model = setup.build_model(config, num_classes=10)
    assert (model.num_classes, model.input_shape, model.grid) == (10, (8, 8, 1), (4, 4))
    assert (model.dtype, model.joining, model.width) == (jnp.dtype("bfloat16"), "shared", 64)


@pytest.mark.parametrize(
    ("key", "value", "implied"),
    [
        ("num_classes", 11, "10"),
        ("image_size", 32, "8"),
        ("in_channels", 3, "1"),
        ("dtype", "bfloat16", "float32"),
        ("dtype", "abc", "float32"),
    ],
)
def test_what_is_implied_cannot_be_contradicted(config, key, value, implied):
    config.model[key] = value
    with pytest.raises(UserError, match=f"config.model.{key} is {value!r}, but by .* it is {implied}: leave it out"):
        setup.build_model(config, num_classes=10)


def test_what_is_implied_may_be_repeated(config):
    config.model.update({"num_classes": 10, "image_size": 8, "dtype": "float32"})
    assert setup.build_model(config, num_classes=10).num_classes == 10


def test_a_wrong_setting_of_the_model_is_a_user_error(config):
    config.model.widht = 32
    with pytest.raises(UserError, match=r"setting 'widht' is not one of .* \(did you mean 'width'\?\)"):
        setup.build_model(config, num_classes=10)


class Counting(ArraySource):
    """Eleven images; counts how often one is read."""

    def __init__(self):
        images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
        super().__init__(images, range(11), [f"image {i}" for i in range(11)], ())
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("resident", [True, False])
def test_evaluation_batches_hold_every_example_once(config, resident):
    config.data.resident = resident
    source = Counting()
    batches = inputs.evaluation_batches(config, source)
    assert source.reads == 0  # an evaluation may never come
    for evaluation in (1, 2):
        found = list(batches(4, 0, 1))
        assert [len(batch["label"]) for batch in found] == [4, 4, 4]
        labels, mask = (np.concatenate([batch[name] for batch in found]) for name in ("label", "mask"))
        images = np.concatenate([batch["image"] for batch in found])
        np.testing.assert_array_equal(mask, [1] * 11 + [0])
        np.testing.assert_array_equal(labels[:11], range(11))
        np.testing.assert_array_equal(images[:11], source.images)
        assert source.reads == (11 if resident else 11 * evaluation)


# ---- The run that a workdir holds ------------------------------------------------------------------------------------


@pytest.fixture
def compare(config, tmp_path):
    """compare(key=value, ...) -> what setup says of the same config with those keys changed ("__" for a dot)."""
    (tmp_path / "config.json").write_text(to_json(config))

    def changed(num_classes=10, **changes):
        for key, value in changes.items():
            group, _, leaf = key.rpartition("__")
            (config[group] if group else config)[leaf] = value
        return setup.compare_with_workdir(config, setup.build_model(config, num_classes), tmp_path)

    return changed


def test_a_new_workdir_holds_no_run(config, tmp_path):
    assert setup.compare_with_workdir(config, setup.build_model(config, 10), tmp_path / "new") == []


def test_the_same_config_does_not_differ(compare):
    assert compare() == []


def test_the_same_model_in_other_words_is_the_same_model(compare):
    assert compare(model__join="lape") == ["config.model.join was None so far, and is 'lape' from here on"]


def test_other_settings_are_listed(compare):
    assert compare(model__dropout=0.1, optimizer__lr=2e-3, batch_size=64) == [
        "config.batch_size was 128 so far, and is 64 from here on",
        "config.model.dropout was None so far, and is 0.1 from here on",
        "config.optimizer.lr was 0.001 so far, and is 0.002 from here on",
    ]


def test_how_a_model_is_computed_may_change(compare):
    assert len(compare(model__unroll=2, model__remat="full", dtype="bfloat16")) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model__name": "deit_ti", "model__patch_size": 8}, "patch_size"),
        ({"model__pe": "sincos_2d"}, "pe"),
        ({"model__join": "lape_sharing"}, "join"),
        ({"model__pe_norm": "norm"}, "pe_norm"),
        ({"model__heads": 8}, "heads"),
        ({"model__ln_eps": 1e-5}, "ln_eps"),
        ({"data__image_size": 16}, "image_size"),
    ],
    ids=str,
)
def test_another_model_is_a_user_error(compare, change, field):
    """Even where shapes are the same, as with other heads, pe_norm or ln_eps."""
    with pytest.raises(UserError, match=f"holds a run of another model: its {field} is .* use another --workdir"):
        compare(**change)


REFUSED = [NotImplementedError("no such layout"), jax.errors.JaxRuntimeError("UNIMPLEMENTED: no such layout\nat x")]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_what_a_compiler_refuses_is_said_in_a_line(error):
    config = runs.load(**{"model.attention": "cudnn"})
    with pytest.raises(UserError) as found, setup.compiling(config):
        raise error
    said = str(found.value)
    assert said.startswith("these devices cannot make a step with ")
    assert "--config.model.attention=cudnn" in said
    assert said.endswith("no such layout")


@pytest.mark.parametrize(("deterministic", "kind"), [(True, UserError), (False, jax.errors.JaxRuntimeError)])
def test_an_internal_error_is_a_bug_unless_a_fixed_order_was_asked_for(deterministic, kind):
    with pytest.raises(kind, match="INTERNAL: no kernel"), setup.compiling(runs.load(deterministic=deterministic)):
        raise jax.errors.JaxRuntimeError("INTERNAL: no kernel")


def test_too_little_memory_is_not_explained_here():
    with pytest.raises(jax.errors.JaxRuntimeError), setup.compiling(runs.load(deterministic=True)):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB")
