"""What attention="auto" means, by platform, type, length, heads, bias, dropout and split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lape_jax.errors import UserError
from lape_jax.nn import choice
from lape_jax.nn.choice import Site

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    platform: str
    device_kind: str
    process_index: int = 0


def on(platform, capability=None, shape=(1, 1, 1), name="auto"):
    """Devices that need not exist."""
    devices = np.empty(shape, object)
    for i in np.ndindex(shape):
        devices[i] = Device(int(np.ravel_multi_index(i, shape)), platform, f"some {platform}")
    mesh = Mesh(devices, ("data", "fsdp", "tensor"))
    return choice.OnDevices(name, platform, capability, mesh, ("data", "fsdp"), "tensor")


def site(tokens=197, dtype=BFLOAT16, heads=4, head_dim=64, dropout=False, windows=0, sequences=64, keys=None):
    return Site(sequences, tokens, keys or tokens, heads, head_dim, dtype, dropout, windows)


HOPPER, AMPERE, TURING, TPU, CPU = on("gpu", (9, 0)), on("gpu", (8, 0)), on("gpu", (7, 5)), on("tpu"), on("cpu")


@pytest.mark.parametrize(
    ("devices", "where", "name", "reason"),
    [
        (HOPPER, site(), "cudnn", "bfloat16 on some gpu (9.0)"),
        (AMPERE, site(dtype=jnp.dtype(jnp.float16)), "cudnn", "float16 on some gpu (8.0)"),
        (HOPPER, site(tokens=4096), "cudnn", "bfloat16"),
        (HOPPER, site(windows=64), "cudnn", "bfloat16"),
        (HOPPER, site(tokens=1, keys=196), "cudnn", "bfloat16"),
        (HOPPER, site(dtype=FLOAT32), "xla", "cuDNN takes bfloat16 and float16, not float32"),
        (HOPPER, site(dtype=FLOAT32, tokens=1024), "blocks", "1024 tokens or more; cuDNN takes bfloat16"),
        (HOPPER, site(dropout=True), "xla", "attention dropout"),
        (HOPPER, site(head_dim=12), "xla", "cuDNN takes heads of 8, 16, ... 256 channels, not 12"),
        (AMPERE, site(head_dim=136), "xla", "cuDNN takes heads of 8, 16, ... 128 channels, not 136"),
        (TURING, site(), "xla", "capability 8.0, not some gpu (7.5)"),
        (on("gpu"), site(), "xla", "cuDNN needs an NVIDIA GPU of compute capability 8.0, not some gpu"),
        (TPU, site(), "pallas", "bfloat16 on some tpu"),
        (TPU, site(tokens=49, windows=64), "pallas", "bfloat16"),
        (TPU, site(dtype=FLOAT32), "xla", "the kernel is for bfloat16, not float32"),
        (TPU, site(tokens=784), "xla", "the kernel is for sequences of up to 512 tokens"),
        (TPU, site(tokens=1025), "blocks", "1024 tokens or more; the kernel is for sequences of up to 512 tokens"),
        (TPU, site(tokens=1, keys=196), "xla", "that attend to themselves"),
        (on("tpu", shape=(2, 1, 2)), site(), "xla", "the kernel has all heads of a sequence on one device"),
        (on("gpu", (9, 0), (2, 2, 2)), site(), "cudnn", "bfloat16"),
        (on("gpu", (9, 0), (1, 1, 8)), site(), "xla", "4 heads do not divide over 8 devices"),
        (on("gpu", (9, 0), (8, 1, 1)), site(sequences=1), "xla", "1 sequences do not divide over 8"),
        (on("tpu", shape=(8, 1, 1)), site(windows=16), "xla", "64 sequences do not divide over 128"),
        (CPU, site(), "xla", "no fused attention for some cpu"),
        (CPU, site(tokens=1024), "blocks", "1024 tokens or more"),
        (CPU, site(tokens=2048, dropout=True), "xla", "attention dropout"),
        ("auto", site(), "xla", "no devices given"),
        ("auto", site(tokens=1, keys=1024), "blocks", "1024 tokens or more"),
        ("cudnn", site(dtype=FLOAT32), "cudnn", "asked for"),
        (on("cpu", name="blocks"), site(), "blocks", "asked for"),
        (on("tpu", shape=(8, 1, 1), name="pallas"), site(sequences=1), "xla", "1 sequences do not divide over 8"),
    ],
)  # fmt: skip
def test_choice(devices, where, name, reason):
    found = choice.choose(devices, where)
    assert found.name == name
    assert reason in found.reason


@pytest.mark.parametrize(
    ("name", "devices", "where", "message"),
    [
        ("cudnn", ("cpu",), site(), "attention='cudnn' is not possible here, use attention='auto': cuDNN needs an"),
        ("cudnn", ("gpu", (9, 0)), site(head_dim=20), "cuDNN takes heads of 8, 16, ... 256 channels, not 20"),
        ("cudnn", ("gpu", (9, 0)), site(dtype=FLOAT32), "cuDNN takes bfloat16 and float16, not float32"),
        ("pallas", ("gpu", (9, 0)), site(), "attention='pallas' is not possible here, use attention='auto': the"),
    ],
)
def test_what_is_asked_for_is_done_or_refused(name, devices, where, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(".", r"\.")):
        choice.choose(on(*devices, name=name), where)


def test_names_and_dropout():
    for name in choice.IMPLEMENTATIONS:
        choice.check(name, 0.0)
    choice.check("auto", 0.1)
    choice.check("xla", 0.1)
    with pytest.raises(UserError, match=r"attention='cuddn' is not one of auto, xla, .* \(did you mean 'cudnn'\?\)"):
        choice.check("cuddn", 0.0)
    for name in ("blocks", "cudnn", "pallas"):
        with pytest.raises(UserError, match=f"attention='{name}' has no attention dropout: .* or rate=0"):
            choice.check(name, 0.1, "rate")


def test_devices_are_those_of_the_mesh():
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(2, 1, 1), ("data", "fsdp", "tensor"))
    found = choice.for_devices("auto", mesh, ("data", "fsdp"), "tensor")
    assert (found.platform, found.capability, found.shards(), str(found)) == ("cpu", None, 2, "auto")
    assert hash(found) == hash(choice.for_devices(found, mesh, ("data", "fsdp"), "tensor"))
