"""RegNet's state dicts in timm's names, as DeiT's teacher is published: names, axes and bits."""

import flax.linen as nn
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests import peers
from tests.port.tiny import identical, random_variables, round_trip

NORM = ("weight", "bias", "running_mean", "running_var")
COUNTERS = [f"{norm}.num_batches_tracked" for norm in ("stem.bn", "s1.b1.conv1.bn", "s2.b2.conv3.bn")]


def tiny(**settings):
    """Two stages, of one and two blocks."""
    sizes = {"w0": 8, "wa": 8.0, "wm": 3.0, "depth": 3, "group_width": 4, "stem_width": 4, "num_classes": 3}
    return models.create("regnety_160", **{**sizes, "image_size": 8, **settings})


def refusal(state_dict, model):
    with pytest.raises(UserError) as caught:
        port.from_torch(state_dict, model)
    return str(caught.value)


def without(state_dict, suffix):
    return {name: array for name, array in state_dict.items() if not name.endswith(suffix)}


def test_round_trip_and_names():
    model = tiny()
    assert model.stages == [(8, 4, 1), (24, 4, 2)]
    convs = ["stem", *(f"s1.b1.conv{i}" for i in (1, 2, 3)), "s1.b1.downsample"]
    convs += [*(f"s2.b{b}.conv{i}" for b in (1, 2) for i in (1, 2, 3)), "s2.b1.downsample"]
    names = {f"{conv}.conv.weight" for conv in convs} | {f"{conv}.bn.{leaf}" for conv in convs for leaf in NORM}
    names |= {f"{conv}.bn.num_batches_tracked" for conv in convs}
    blocks = ("s1.b1", "s2.b1", "s2.b2")
    names |= {f"{block}.se.{fc}.{leaf}" for block in blocks for fc in ("fc1", "fc2") for leaf in ("weight", "bias")}
    names |= {"head.fc.weight", "head.fc.bias"}
    assert set(round_trip(model)) == names


def test_axes():
    model = tiny()
    variables = random_variables(model)
    params, stats, state_dict = variables["params"], variables["batch_stats"], port.to_torch(variables, model)
    conv, kernel = state_dict["s2.b2.conv2.conv.weight"], params["s2"]["b2"]["conv2"]["conv"]["kernel"]
    assert conv.shape == (24, 4, 3, 3)
    assert conv[17, 2, 0, 1] == kernel[0, 1, 2, 17]  # out, in of the group, row, column
    assert state_dict["s2.b1.se.fc1.weight"].shape == (2, 24, 1, 1)
    assert state_dict["s2.b1.se.fc2.weight"][9, 1, 0, 0] == params["s2"]["b1"]["se"]["fc2"]["kernel"][0, 0, 1, 9]
    assert state_dict["s1.b1.conv3.bn.running_var"][5] == stats["s1"]["b1"]["conv3"]["bn"]["var"][5]
    assert state_dict["s1.b1.conv3.bn.running_mean"][5] == stats["s1"]["b1"]["conv3"]["bn"]["mean"][5]
    assert state_dict["s1.b1.conv3.bn.weight"][5] == params["s1"]["b1"]["conv3"]["bn"]["scale"][5]
    assert state_dict["head.fc.weight"][2, 9] == params["head"]["kernel"][9, 2]


@pytest.mark.slow
def test_types_are_kept():
    for dtype in (np.float16, np.float64):
        state_dict = round_trip(tiny(), dtype)
        assert {array.dtype for array in state_dict.values()} == {np.dtype(dtype), np.dtype(np.int64)}


def test_as_it_is_published():
    """In a dict under "model", each BatchNorm with a counter of training steps; older files may lack the counters."""
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    expected = port.from_torch(state_dict, model)
    counted = {name: np.full((), 375_300) if name.endswith("tracked") else x for name, x in state_dict.items()}
    for given in (
        {"model": counted},
        {"state_dict": {f"module.{name}": array for name, array in counted.items()}, "epoch": 300},
        without(state_dict, "num_batches_tracked"),
    ):
        identical(expected, port.from_torch(given, model))
    assert all(state_dict[name] == 0 and state_dict[name].dtype == np.int64 for name in COUNTERS)


def test_paths_of_variables_that_are_no_parameters_begin_with_their_collection(tmp_path):
    model = tiny()
    variables = random_variables(model)
    port.save(tmp_path / "teacher.npz", variables, model, format="lape")
    with np.load(tmp_path / "teacher.npz") as file:
        np.testing.assert_array_equal(file["stem/bn/scale"], variables["params"]["stem"]["bn"]["scale"])
        np.testing.assert_array_equal(file["batch_stats/stem/bn/mean"], variables["batch_stats"]["stem"]["bn"]["mean"])
    with pytest.raises(
        UserError, match=r"^the tree of variables \(50 of 74 fit\) does not fit .*: it lacks batch_stats/s1/b1"
    ):
        port.to_torch({"params": variables["params"]}, model)


@pytest.mark.parametrize(("suffix", "format"), [(".npz", "torch"), (".safetensors", "torch"), (".safetensors", "lape")])
def test_files(tmp_path, suffix, format):
    model = tiny()
    variables = random_variables(model)
    port.save(tmp_path / f"teacher{suffix}", variables, model, format=format)
    identical(variables, port.load(tmp_path / f"teacher{suffix}", model))


def test_each_kind_of_misfit_in_one_message():
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    state_dict["s1.b1.conv1.bn.running_var"][0] = np.nan
    state_dict["stem.bn.bias"] = np.zeros(4, np.int32)
    state_dict["s2.b2.downsample.conv.weight"] = np.zeros((24, 24, 1, 1))
    given = {**without(state_dict, "se.fc1.bias"), "head.fc.weight": np.zeros((10, 24))}
    assert refusal(given, model) == (
        "the state dict in timm's RegNet names (68 of 74 fit) does not fit the model: "
        "it lacks s1.b1.se.fc1.bias, s2.b1.se.fc1.bias, s2.b2.se.fc1.bias; "
        "the model has no s2.b2.downsample.conv.weight; "
        "shapes differ: head.fc.weight is (10, 24) and should be (3, 24); "
        "not floating point: stem.bn.bias is int32; not finite: s1.b1.conv1.bn.running_var"
    )


@pytest.mark.parametrize("value", [np.zeros((), np.float32), np.zeros(1, np.int64)])
def test_what_is_no_counter(value):
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model) | {COUNTERS[0]: value}
    message = refusal(state_dict, model)
    assert message == f"stem.bn.num_batches_tracked is {value.dtype} {value.shape} and should be one integer"


def test_vits_and_regnets_are_not_mistaken_for_each_other():
    vit = models.create("vit_micro", depth=1)
    vit_weights, regnet_weights = (port.to_torch(random_variables(model), model) for model in (vit, tiny()))
    assert "timm's RegNet names (0 of 22 fit)" in refusal(regnet_weights, vit)
    assert "the model has no blocks.0.attn.proj.bias, " in refusal(vit_weights, tiny())


def test_other_models_have_no_names():
    with pytest.raises(UserError, match="a Dense has no counterpart in PyTorch"):
        port.from_torch({}, nn.Dense(3))


@pytest.mark.peer
def test_both_ways_with_timm(tmp_path):
    torch = pytest.importorskip("torch")
    timm = peers.timm()
    model = tiny(wa=8.0, wm=2.0, depth=6)  # timm wants four stages
    sizes = {"w0": 8, "wa": 8.0, "wm": 2.0, "depth": 6, "group_size": 4, "stem_width": 4, "num_classes": 3}
    net = timm.create_model("regnety_160", **sizes)
    torch.save({"model": net.state_dict()}, tmp_path / "teacher.pth")
    variables = port.load(tmp_path / "teacher.pth", model)
    back = port.to_torch(variables, model)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()}, strict=True)
    identical(variables, port.from_torch(net.state_dict(), model))
