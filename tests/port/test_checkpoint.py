"""Where in a checkpoint the weights are: dicts in dicts, prefixes of names, and what stands beside them."""

import itertools

import jax
import numpy as np
import pytest

from lape_jax import convert, models, port
from lape_jax.errors import UserError
from lape_jax.port import checkpoint
from lape_jax.port.params import flatten
from tests.port.tiny import TINY, identical, random_variables, tiny

PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "vit.", "student.", "base_encoder."]
KEYS = ["model", "model_ema", "state_dict", "state_dict_ema", "model_state_dict", "teacher", "student", "ema", "net"]
KEYS += ["module", "weights", "params_ema"]


@pytest.fixture(scope="module")
def model():
    return tiny(join="default")


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="module")
def state_dict(model, variables):
    return port.to_torch(variables, model)


def prefixed(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", [*PREFIXES, *map("".join, itertools.permutations(PREFIXES[:4], 2)), "a.b.c.d."])
def test_a_prefix_of_all_names(model, variables, state_dict, caplog, prefix):
    identical(variables, port.from_torch(prefixed(prefix, state_dict), model))
    assert f"{prefix!r} taken off the names" in caplog.text
    short = {name: array for name, array in state_dict.items() if name != "head.bias"}
    with pytest.raises(UserError, match=r"\(31 of 32 fit\) does not fit the model: it lacks head\.bias$"):
        port.from_torch(prefixed(prefix, short), model)


@pytest.mark.parametrize("key", KEYS)
def test_a_dict_in_a_dict(model, variables, state_dict, caplog, key):
    other = {"epoch": 3, "args": object(), "optimizer": {"state": {0: {"exp_avg": np.zeros((2, 2))}}, "lr": 0.1}}
    identical(variables, port.from_torch({**other, key: state_dict}, model))
    assert f"read from under '{key}'" in caplog.text
    identical(variables, port.from_torch({"checkpoint": {**other, key: prefixed("module.", state_dict)}}, model))
    assert f"read from under 'checkpoint.{key}'" in caplog.text


def test_an_optimiser_that_keeps_its_arrays_by_name(model, variables, state_dict):
    moments = {name: {"exp_avg": array, "exp_avg_sq": array} for name, array in state_dict.items()}
    few = {name: state_dict[name] for name in ("head.bias", "norm.weight", "norm.bias")}
    identical(variables, port.from_torch({"optimizer": moments, "few": few, "model": state_dict}, model))


def test_wrappers_within_a_model(model, variables, state_dict, caplog):
    """Blocks that were compiled or checkpointed one by one."""
    given = {name.replace("blocks.1.", "blocks.1._orig_mod."): array for name, array in state_dict.items()}
    given = {name.replace("mlp.", "mlp._checkpoint_wrapped_module."): array for name, array in given.items()}
    identical(variables, port.from_torch(prefixed("_orig_mod.", given), model))
    assert "'_orig_mod.' taken off the names" in caplog.text
    assert "'_checkpoint_wrapped_module.' and '_orig_mod.' taken out of the names" in caplog.text


def test_what_is_no_weight_beside_the_weights(model, variables, state_dict, caplog):
    """As in swa_utils.AveragedModel, and where a script has put its counters among the weights."""
    averaged = {"n_averaged": np.array(7), **prefixed("module.", state_dict)}
    identical(variables, port.from_torch(averaged, model))
    assert "not read, as they are no weights: n_averaged" in caplog.text
    identical(
        variables, port.from_torch({**state_dict, "epoch": 3, "args": None, "opt": {}, "step": np.array(2)}, model)
    )
    assert "not read, as they are no weights: epoch, args, opt, step" in caplog.text
    with pytest.raises(UserError, match=r"the model has no blocks\.0\.pe_norm\.weight$"):  # a scalar that is a weight
        port.from_torch({**state_dict, "blocks.0.pe_norm.weight": np.array(1.0)}, model)
    with pytest.raises(UserError, match=r"head\.bias should be an array, and is a list$"):
        port.from_torch({**state_dict, "head.bias": [1.0]}, model)


def test_other_weights_beside_them_are_not_passed_over(model, state_dict):
    given = prefixed("backbone.", state_dict) | {"neck.weight": np.zeros((2, 2))}
    with pytest.raises(UserError, match=r"has no neck.weight \(KEY of FILE:KEY can end with 'backbone', to leave out"):
        port.from_torch(given, model)


def test_the_one_that_fits_is_taken(model, variables, state_dict):
    """Of a student and a teacher of another size, in whatever order, in dicts or by prefixes."""
    other = tiny(join="default", width=48, depth=3)
    larger = port.to_torch(random_variables(other), other)
    for given in (
        {"student": state_dict, "teacher": larger},
        {"teacher": larger, "student": state_dict},
        {"state_dict": prefixed("student.", state_dict) | prefixed("teacher.", larger)},
    ):
        identical(variables, port.from_torch(given, model))
        identical(random_variables(other), port.from_torch(given, other))
    with pytest.raises(UserError, match="does not fit the model"):
        port.from_torch({"student": larger, "teacher": larger}, model)


def test_two_that_fit_must_be_chosen_from(model, state_dict):
    with pytest.raises(UserError, match=r"weights under 'model' and under 'ema': .* \(FILE:ema\)$"):
        port.from_torch({"model": state_dict, "ema": state_dict}, model)
    both = prefixed("student.", state_dict) | prefixed("teacher.", state_dict)
    match = r"under 'state_dict.student' and under 'state_dict.teacher': .* \(FILE:state_dict.teacher\)$"
    with pytest.raises(UserError, match=match):
        identical({}, port.from_torch({"state_dict": both}, model))


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("a", {"x.y": 1, "x.z": 2}),
        ("a.x", {"y": 1, "z": 2}),
        ("b.c", {"w": 3}),
        ("b.c.d", None),
        ("d.e", {"v": 4}),
        ("p", {"q/r": 5}),
        ("", None),
        ("nope", None),
    ],
)
def test_keys(key, found):
    given = {"a": {"x.y": 1, "x.z": 2}, "b": {"c": {"w": 3}}, "d.e": {"v": 4}, "p/q/r": 5, 7: 0}
    if found is not None:
        assert checkpoint.select(given, key) == found
        return
    with pytest.raises(UserError, match=rf"^there are no weights under '{key}': the keys there are: d, p$"):
        checkpoint.select(given, key)


def test_keys_that_there_are(state_dict):
    with pytest.raises(UserError, match=r"the keys there are: model, state\.ema$"):
        checkpoint.select({"model": state_dict, "state": {"ema": state_dict, "none": {}}}, "emma")
    with pytest.raises(UserError, match=r"it has no keys to choose from$"):
        checkpoint.select({"w": 1}, "emma")


def test_dicts_without_end():
    """A dict of 2^100 dicts by the number of its places, and one of very many."""
    deep = {"w": np.zeros(1)}
    for _ in range(100):
        deep = {"a": deep, "b": deep}
    assert len(checkpoint.parts(deep, frozenset())) == 1
    wide = {str(i): {"w": np.zeros(1)} for i in range(20_000)}
    assert len(checkpoint.parts({"a": wide, "b": wide}, frozenset({"w"}))) <= checkpoint.MANY


# ---- Other families and names ----------------------------------------------------------------------------------------

FAMILIES = {
    "swin_t": {"width": 8, "depths": (2, 2), "heads": (1, 2), "window_size": 2, "image_size": 16, "patch_size": 2},
    "t2t_vit_7": {"width": 32, "depth": 1, "heads": 2, "image_size": 32},
    "ceit_ti": {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8},
    "cct_7_3x1": {"width": 16, "depth": 1, "heads": 2, "image_size": 16},
    "segmenter_ti_mask": {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8},
    "segmenter_ti_linear": {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(tmp_path, name):
    model = models.create(name, **FAMILIES[name], num_classes=3)
    variables = random_variables(model)
    writers = {"torch": port.to_torch, **({"mmseg": port.files.to_mmseg} if "segmenter" in name else {})}
    for writer in writers.values():
        for prefix in ("module._orig_mod.", "model."):
            identical(variables, port.from_torch({"teacher": prefixed(prefix, writer(variables, model))}, model))
    ours = tmp_path / "lape.npz"
    port.save(ours, variables, model, format="lape")
    with np.load(ours) as file:
        np.savez(ours, **prefixed("params/", file))
    identical(variables, port.load(ours, model))
    identical(variables, port.load(f"{ours}:params", model))


def test_keys_of_files_of_every_kind(tmp_path, model, variables, state_dict, caplog):
    from safetensors.numpy import save_file

    both = prefixed("ema.", state_dict) | prefixed("last.", jax.tree.map(np.zeros_like, state_dict))
    np.savez(tmp_path / "w.npz", **both)
    save_file(both, tmp_path / "w")
    for name in ("w.npz", "w"):
        identical(variables, port.load(f"{tmp_path / name}:ema", model))
        with pytest.raises(UserError, match=rf"/{name}: .* under 'ema' and under 'last': .* \(FILE:last\)$"):
            port.load(tmp_path / name, model)
        with pytest.raises(UserError, match=rf"/{name}: there are no weights under 'emma': .*: ema, last$"):
            port.load(f"{tmp_path / name}:emma", model)
    (tmp_path / "a:b").mkdir()
    np.savez(tmp_path / "a:b" / "c:d.npz", **state_dict)
    identical(variables, port.load(tmp_path / "a:b" / "c:d.npz", model))
    np.savez(tmp_path / "a:b" / "c:d.npz", **prefixed("x.", state_dict), **prefixed("y.", state_dict))
    caplog.clear()
    identical(variables, port.load(f"{tmp_path / 'a:b' / 'c:d.npz'}:x", model))
    assert caplog.text == ""


def test_convert_says_what_it_took_off(tmp_path, model, variables, state_dict, caplog):
    np.savez(tmp_path / "w.npz", **prefixed("backbone.vit.", state_dict))
    sizes = [f"--model.{key}={value}" for key, value in TINY.items()]
    argv = [str(tmp_path / "w.npz"), str(tmp_path / "o.npz"), "--model=deit_ti", "--to=lape"]
    convert.main([*argv, *sizes])
    assert f"{argv[0]}: 'backbone.vit.' taken off the names" in caplog.text
    with np.load(argv[1]) as found:
        assert found.keys() == flatten(variables).keys()
