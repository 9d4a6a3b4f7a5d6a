"""Files of torch.save, read without PyTorch: right when they are right, one UserError when they are not."""

import argparse
import collections
import datetime
import enum
import functools
import io
import os
import pickle
import random
import sys
import zipfile
from pathlib import Path, PurePosixPath

import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import port
from lape_jax.errors import UserError
from lape_jax.port import pth
from lape_jax.port.pickled import Opaque, unpickle
from tests.port.tiny import tiny

GOLDEN = Path(__file__).parent / "golden"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
VIEWS = {  # what golden/make.py stored
    "whole": BASE,
    "transposed": BASE.T,
    "slice": BASE[1:3, ::2],
    "expanded": np.zeros((3, 2), np.float32),
    "scalar": np.float32(23),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": BASE,
    "half": BASE.astype(np.float16),
    "bfloat16": BASE.astype(jnp.bfloat16),
    "double": BASE.astype(np.float64),
    "integers": np.arange(-3, 3),
    "bytes": np.arange(3, dtype=np.uint8),
    "flags": np.array([True, False]),
}


def atom(value):
    """Opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(kind=b"torch\nFloatStorage", key="0", elements=4, offset=0, size=(4,), stride=(1,), state=b"\x89}"):
    """Opcodes that push a tensor, as torch.save writes them."""
    storage = b"(" + atom("storage") + b"c" + kind + b"\n" + atom(key) + atom("cpu") + atom(elements) + b"tQ"
    view = atom(offset) + atom(size) + atom(stride) + state
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def archive(path, pushes, storages=None, compression=zipfile.ZIP_STORED, extra=()):
    """Writes the zip file that torch.save would write around the pickle of {"w": what `pushes` pushes}."""
    members = {"data.pkl": b"\x80\x02}" + atom("w") + pushes + b"s.", "byteorder": b"little", **dict(extra)}
    members |= {f"data/{key}": value for key, value in (storages or {"0": np.arange(4, dtype="<f4").tobytes()}).items()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"w/{name}", content)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def same(array, expected):
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["tensors", "tensors_legacy"])
def test_views_and_types(name):
    tensors = pth.read(GOLDEN / f"{name}.pth")
    assert tensors.keys() == VIEWS.keys()
    for key, expected in VIEWS.items():
        same(tensors[key], expected)


@pytest.mark.parametrize("name", ["vit", "vit_legacy"])
def test_training_checkpoint(name):
    checkpoint = pth.read(GOLDEN / f"{name}.pth")
    assert checkpoint["epoch"] == 3
    assert checkpoint["args"].lr == 0.1
    assert checkpoint["args"].resume is None
    assert checkpoint["optimizer"]["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999)}]
    assert checkpoint["optimizer"]["state"][0]["step"] == 7
    assert checkpoint["model"]["blocks.1.attn.qkv.weight"].shape == (24, 8)


@pytest.mark.peer
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_pytorch_writes_now(path, zipped, protocol):
    torch = pytest.importorskip("torch")
    weight = torch.randn(5, 7, 3)
    torch.save(
        {"a": weight.permute(2, 0, 1), "nested": [{"b": weight[1:, ::2]}, (weight.double(), None)], "s": {1, 2}},
        path,
        _use_new_zipfile_serialization=zipped,
        pickle_protocol=protocol,
    )
    result = pth.read(path)
    same(np.array(result["a"]), weight.permute(2, 0, 1).contiguous().numpy())
    same(np.array(result["nested"][0]["b"]), weight[1:, ::2].contiguous().numpy())
    same(np.array(result["nested"][1][0]), weight.double().numpy())
    assert result["s"] == {1, 2}


def test_handmade_tensor(path):
    same(pth.read(archive(path, tensor()))["w"], np.arange(4, dtype=np.float32))
    strided = pth.read(archive(path, tensor(offset=1, size=(2, 2), stride=(1, 1))))["w"]
    same(strided, np.array([[1, 2], [2, 3]], np.float32))


class System:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def legacy(content):
    """A file in the old format whose object is the pickle `content`."""
    header = [pickle.dumps(value, 2) for value in (pth.MAGIC_NUMBER, pth.PROTOCOL, {"little_endian": True})]
    return b"".join([*header, content, pickle.dumps([], 2)])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name_and_not_run(path, tmp_path, protocol, zipped):
    content = pickle.dumps({"w": System(f"touch {tmp_path / 'owned'}")}, protocol)
    if zipped:
        archive(path, b"", extra={"data.pkl": content})
    else:
        path.write_bytes(legacy(content))
    # Protocol 0 has opcodes of its own, which no torch.save writes.
    with pytest.raises(UserError, match="'posix.system', which runs code" if protocol else "its pickle uses"):
        pth.read(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["builtins eval", "__builtin__ exec", "subprocess Popen", "os popen", "nt system"])
def test_what_runs_code_is_refused_by_name(path, name):
    pushes = b"c" + name.replace(" ", "\n").encode() + b"\n)R"
    with pytest.raises(UserError, match=f"{path}: its pickle refers to '{name.replace(' ', '.')}', which runs code"):
        pth.read(archive(path, pushes))


# ---- What stands beside weights --------------------------------------------------------------------------------------


class Settings(dict):
    pass


class Slotted:
    __slots__ = ("a",)

    def __init__(self):
        self.a = {1: "x"}


class Kind(enum.Enum):
    ONE = 1


def partial(*args):
    return functools.partial(dict, *args)


BESIDE = {
    "scalar": np.float64(71.5),
    "array": np.arange(3),
    "objects": np.array([{}, "x"], dtype=object),
    "type": np.dtype("float16"),
    "path": PurePosixPath("/x/y"),
    "date": datetime.datetime(2024, 2, 29),
    "default": collections.defaultdict(dict, {0: {"step": 3}}),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2]),
    "settings": Settings(lr=0.1, layers=[1, 2]),
    "slots": Slotted(),
    "enum": Kind.ONE,
    "class": Settings,
    "function": partial([(1, 2)]),
    "complex": 1j,
    "slice": slice(1, 2),
    "range": range(3),
    "set": {1, 2},
    "frozen": frozenset("ab"),
    "tuple keys": {(0, 1): "x", "y": 2},
    "bytearray": bytearray(b"abc"),
    "namespace": argparse.Namespace(lr=0.1, out=PurePosixPath("/x")),
    "nested": {"deep": [PurePosixPath("a"), (Settings(), None)]},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_what_is_not_known_is_skipped(path, name, zipped, protocol):
    """With two plain values around it, which are what they were."""
    content = pickle.dumps({"before": [1.5], "it": BESIDE[name], "after": {"a": "b"}}, protocol)
    if zipped:
        archive(path, b"", extra={"data.pkl": content})
    else:
        path.write_bytes(legacy(content))
    found = pth.read(path)
    assert (found["before"], found["after"]) == ([1.5], {"a": "b"})
    assert list(found) == ["before", "it", "after"]


def test_what_is_skipped_is_a_name(path):
    skipped = set()
    content = pickle.dumps({"date": BESIDE["date"], "deep": [BESIDE["settings"]], "n": BESIDE["namespace"]}, 2)
    found = pth.read(archive(path, b"", extra={"data.pkl": content}), skipped)
    assert found["date"] == Opaque("datetime.datetime")
    assert found["deep"] == [Opaque(f"{__name__}.Settings")]
    assert found["n"].lr == 0.1
    assert {"datetime.datetime", f"{__name__}.Settings"} < skipped
    assert "argparse.Namespace" not in skipped


@pytest.mark.parametrize(
    "name", ["builtins getattr", "torch.nn.modules.linear Linear", "numpy.core.multiarray scalar", "no.such thing"]
)
def test_nothing_is_imported_or_called(path, monkeypatch, name):
    def never(*_, **__):
        raise AssertionError

    before = set(sys.modules)
    pushes = b"c" + name.replace(" ", "\n").encode() + b"\n)R}K\x01K\x02sb"  # called, and given a state
    content = b"\x80\x02}" + atom("w") + pushes + b"s."
    with monkeypatch.context() as patch:
        patch.setattr("builtins.__import__", never)
        found = unpickle(io.BytesIO(content), storage=id)
    assert found == {"w": Opaque(name.replace(" ", "."))}
    assert set(sys.modules) == before


def test_weights_that_are_skipped_are_missed(path):
    pushes = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    content = b"\x80\x02}" + atom("head.bias") + pushes + b"s."
    archive(path, b"", extra={"data.pkl": content})
    with pytest.raises(UserError, match=r"head.bias should be an array, and is a numpy.core.multiarray._reconstruct$"):
        port.load(path, tiny())


def test_a_tensor_of_another_class(path):
    arguments = b"cmine\nTensor\n(" + tensor()[len(b"ctorch._utils\n_rebuild_tensor_v2\n(") : -1]
    pushes = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"}tR"
    same(pth.read(archive(path, pushes))["w"], np.arange(4, dtype=np.float32))


def test_a_module_and_its_source(path):
    """What torch.save wrote before 1.6 for an object that is a model."""
    pid = b"(" + atom("module") + b"cmine\nNet\n" + atom("net.py") + atom("class Net: ...") + b"tQ"
    assert pth.read(archive(path, pid))["w"] == Opaque("mine.Net")
    archive(path, b"", extra={"data.pkl": b"\x80\x02" + pid + b")R}b."})
    with pytest.raises(UserError, match=r"w.pth holds a mine.Net instead of arrays by name: save the weights alone"):
        port.load(path, tiny())


def test_a_program_of_torch_jit(path):
    with pytest.raises(UserError, match=r"a program of torch\.jit\.save"):
        pth.read(archive(path, tensor(), extra={"constants.pkl": b""}))


@pytest.mark.peer
@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_puts_beside(path, zipped):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.randn(3, 2))
    weight.note = "a Parameter with an attribute"
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    beside = [
        torch.device("cuda:0"),
        torch.float16,
        torch.Size([1, 2]),
        torch.get_rng_state(),
        torch.nn.ReLU(),
        *BESIDE,
    ]
    beside += [
        torch.zeros(2, dtype=torch.complex64),
        torch.finfo(torch.float16).eps,
        np.random.default_rng(0).bit_generator.state,
    ]
    checkpoint = {"w": weight, "beside": beside, "optimizer": optimizer.state_dict(), "all": BESIDE}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    same(np.array(pth.read(path)["w"]), weight.detach().numpy())


# ---- Files made to do harm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pushes", "message"),
    [
        (tensor(size=(5,)), "beyond its 4 stored values"),
        (tensor(offset=1), "beyond its 4 stored values"),
        (tensor(size=(2, 3), stride=(2, 1)), "beyond its 4 stored values"),
        (tensor(size=(2,), stride=(2**62,)), "beyond its 4 stored values"),
        (tensor(offset=10**30), "beyond its 4 stored values"),
        (tensor(size=(10**30,), stride=(0,)), "damaged"),
        (tensor(size=(0, 10**30), stride=(1, 1)), "damaged"),
        (tensor(offset=-1), "whole numbers"),
        (tensor(size=(-4,)), "whole numbers"),
        (tensor(stride=(-1,)), "whole numbers"),
        (tensor(size=(float("nan"),)), "whole numbers"),
        (tensor(size=(float("inf"),)), "whole numbers"),
        (tensor(size=(True,)), "whole numbers"),
        (tensor(size=(2, 2)), "whole numbers"),
        (tensor(size=[4]), "a list where a tuple belongs"),
        (tensor(size=(1,) * 65, stride=(1,) * 65), "damaged"),
        (tensor(elements=5), "'0' should hold 5 elements of float32"),
        (tensor(elements=-4), "not a whole number"),
        (tensor(elements=float("inf")), "not a whole number"),
        (tensor(kind=b"torch\nDoubleStorage"), "'0' should hold 4 elements of float64"),
        (tensor(kind=b"torch\nComplexFloatStorage"), "'0' should hold 4 elements of complex64"),
        (tensor(kind=b"torch\nQUInt4x2Storage"), "torch.QUInt4x2Storage that is not a storage"),
        (tensor(kind=b"collections\nOrderedDict"), "not a storage"),
        (tensor(key="1"), "'1' is missing"),
        (tensor(key="../data.pkl"), "is missing"),
        (tensor(key=0), "a int where a str belongs"),
        (tensor(state=b"\x89}" + atom({"conj": True})), "conjugated"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02tR", "a int where a list belongs"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "damaged"),
        (b"ctorch\nFloatStorage\n)R", "calls 'torch.FloatStorage'"),
        (b"cargparse\nNamespace\n(K\x01tR", "calls 'argparse.Namespace'"),
        (atom("no tuple") + b"Q", "a str where a tuple belongs"),
        (b"\x85\x93", "a tuple where a str belongs"),
        (b"]}b", "a list where a dict belongs"),
        (b"h\x07", "damaged"),
        (b"0", "damaged"),
        (b"1", "damaged"),
        (b"R", "a str where a tuple belongs"),
        (b"\x85\x85t", "damaged"),
        (b"\xff", "damaged"),
    ],
)
def test_nonsense_is_refused(path, pushes, message):
    with pytest.raises(UserError, match=message):
        pth.read(archive(path, pushes))


def test_hash_bombs_are_harmless(path):
    deep = b"}" + b")" + b"\x85" * 10**4 + b"K\x01s"  # hashing enough of these overflows the C stack
    assert pth.read(archive(path, deep)) == {"w": {}}
    bomb = b")" + b"q\x00h\x00\x86" * 100  # and this would take 2^100 steps
    for pushes in (b"}" + bomb + b"K\x01s", b"}(" + bomb + b"K\x01u", b"\x8f(" + bomb + b"\x90", b"(" + bomb + b"\x91"):
        assert pth.read(archive(path, pushes)) in ({"w": {}}, {"w": set()})
    for pushes in (b"cmine\nDict\n)R" + bomb + b"K\x01s", b"cmine\nthing\n" + bomb + b"R"):
        assert isinstance(pth.read(archive(path, pushes))["w"], Opaque)
    with pytest.raises(UserError, match="a tuple where a str belongs"):
        pth.read(archive(path, bomb + bomb + b"\x93"))
    with pytest.raises(UserError, match="whole numbers"):
        pth.read(archive(path, tensor().replace(atom(0) + atom((4,)), atom(0) + b")" + b"q\x00h\x00\x86" * 100)))


def test_zip_bomb(path):
    zeros = np.zeros(2**24, np.float32).tobytes()
    archive(path, tensor(elements=2**24, size=(2**24,)), {"0": zeros}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="bytes claim to unpack to 67"):
        pth.read(path)


def test_recompressed_is_fine(path):
    values = np.random.default_rng(0).standard_normal(4).astype("<f4")
    archive(path, tensor(), {"0": values.tobytes()}, zipfile.ZIP_DEFLATED)
    same(pth.read(path)["w"], values)


def test_byte_order(path):
    with pytest.raises(UserError, match="big-endian"):
        pth.read(archive(path, tensor(), extra={"byteorder": b"big"}))


def test_zip_without_or_with_two_pickles(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w/other", b"")
    with pytest.raises(UserError, match="zip archive with 0"):
        pth.read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("v/data.pkl", b"")
        file.writestr("w/data.pkl", b"")
    with pytest.raises(UserError, match="zip archive with 2"):
        pth.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"P", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (b"<!DOCTYPE html>", "damaged"),
        (pickle.dumps({"w": 1}, 2), "not one of torch.save"),
        (legacy(b"\x80\x02}" + tensor(elements=10**3) + b"."), "more values than it holds"),
        (legacy(b"\x80\x02}" + tensor(elements=1, size=(1,)) + b"."), "storages that it lists"),
    ],
)
def test_other_files(path, content, message):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        pth.read(path)
    assert str(caught.value).startswith(str(path))


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        pth.read(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        pth.read(tmp_path)


@pytest.mark.parametrize("name", ["tensors", "tensors_legacy"])
def test_truncated_anywhere(path, name):
    content = (GOLDEN / f"{name}.pth").read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"w\.pth"):
            pth.read(path)


@pytest.mark.parametrize("name", ["tensors", "tensors_legacy"])
def test_damaged_anywhere(path, name):
    """Whatever bytes change, the end is a result or a UserError; in a zip file a changed weight never passes."""
    content = (GOLDEN / f"{name}.pth").read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 5])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            tensors = pth.read(path)
        except UserError:
            continue
        if name == "tensors":
            for key in tensors.keys() & VIEWS.keys():
                same(tensors[key], VIEWS[key])


def test_damaged_pickle(path):
    """The checksum of the archive guards against accidents; this is about pickles made to be wrong."""
    with zipfile.ZipFile(GOLDEN / "tensors.pth") as file:
        members = {name.removeprefix("tensors/"): file.read(name) for name in file.namelist()}
    draw = random.Random(1)
    for _ in range(200):
        damaged = bytearray(members["data.pkl"])
        for _ in range(draw.choice([1, 2, 8])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        archive(path, b"", storages={"none": b""}, extra={**members, "data.pkl": bytes(damaged)})
        try:
            pth.read(path)
        except UserError:
            continue


def test_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1, 2.5, "x", None, True], 2) + b"rest")
    assert unpickle(stream, storage=id) == [1, 2.5, "x", None, True]
    assert stream.read() == b"rest"
