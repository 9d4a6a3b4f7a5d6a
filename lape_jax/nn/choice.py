"""What `attention="auto"` means: which implementation suits a sequence on the devices that a program is made for."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lape_jax.errors import UserError, nearest

AUTO = "auto"
IMPLEMENTATIONS = (AUTO, "xla", "blocks", "cudnn", "pallas")
LONG = 1024  # tokens from which on nothing is made that is as large as their number squared
SHORT = 512  # most tokens of which a TPU holds all weights of a head on the chip
AMPERE, HOPPER = (8, 0), (9, 0)
HALVES = (jnp.bfloat16, jnp.float16)


@dataclasses.dataclass(frozen=True)
class OnDevices:
    """A model's `attention` once the devices are known that its program is made for: see `for_devices`.

    Attributes:
        name: what was asked for, one of `IMPLEMENTATIONS`.
        platform: "cpu", "gpu" or "tpu".
        capability: compute capability of an NVIDIA GPU, else None.
        mesh: the mesh over all devices.
        rows, heads: axes of the mesh that sequences and heads are split over.
    """

    name: str
    platform: str
    capability: tuple[int, int] | None
    mesh: jax.sharding.Mesh
    rows: tuple[str, ...]
    heads: str

    def __str__(self) -> str:
        return self.name

    def shards(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.rows)


class Site(NamedTuple):
    """One place of a model where sequences attend."""

    sequences: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    dtype: jnp.dtype
    dropout: bool  # of attention weights, here and now
    windows: int = 0  # of an image, each with a bias of its own; 1: all sequences have the same, 0: they have none


class Choice(NamedTuple):
    """One of `IMPLEMENTATIONS` but "auto", and why."""

    name: str
    reason: str


def for_devices(name: "str | OnDevices", mesh: jax.sharding.Mesh, rows: tuple[str, ...], heads: str) -> OnDevices:
    """The implementation called `name` for programs on a `mesh`, split over its axes `rows` and `heads`."""
    device = mesh.devices.flat[0]
    platform = "gpu" if device.platform in ("gpu", "cuda", "rocm") else device.platform
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return OnDevices(str(name), platform, found and (int(found[1]), int(found[2])), mesh, rows, heads)


def check(name: "str | OnDevices", rate: float, field: str = "attn_dropout") -> None:
    """Raises UserError for an unknown implementation, or one without the attention dropout of `field`."""
    if str(name) not in IMPLEMENTATIONS:
        raise UserError(f"attention={nearest(str(name), IMPLEMENTATIONS)}")
    if str(name) not in (AUTO, "xla") and rate:
        raise UserError(
            f"attention={str(name)!r} has no attention dropout: use attention='auto' or 'xla', or {field}=0"
        )


def choose(attention: "str | OnDevices", site: Site) -> Choice:
    """What attends at `site`.

    Without devices "auto" is what all of them can do: "xla", or "blocks" for long sequences. With them:

    - attention dropout: "xla", which alone has it;
    - bfloat16 or float16 on an NVIDIA GPU of compute capability 8.0 or more: "cudnn";
    - bfloat16 on a TPU, up to `SHORT` tokens: "pallas";
    - else "blocks" from `LONG` tokens on, and "xla" below.

    Raises:
        UserError: another name than "auto" is asked for, and its implementation is not possible here.
    """
    name = str(attention)
    devices = attention if isinstance(attention, OnDevices) else None
    if name == AUTO:
        if site.dropout:
            return Choice("xla", "attention dropout")
        missing = "no devices given"
        if devices:
            if devices.platform not in _FUSED:
                missing = f"no fused attention for {_shown(devices)}"
            elif not (missing := obstacle(fused := _FUSED[devices.platform], site, devices)):
                return Choice(fused, f"{jnp.dtype(site.dtype).name} on {_shown(devices)}")
        long = max(site.queries, site.keys) >= LONG
        return Choice("blocks", f"{LONG} tokens or more; {missing}") if long else Choice("xla", missing)
    if devices and name in _OBSTACLES:
        if missing := _OBSTACLES[name](site, devices):
            raise UserError(f"attention={name!r} is not possible here, use attention='auto': {missing}")
        if missing := _split(site, devices):  # as of the one image that variables are created with
            return Choice("xla", missing)
    return Choice(name, "asked for")


def obstacle(name: str, site: Site, devices: OnDevices) -> str:
    """Why the fused implementation called `name` cannot attend at `site`; "" if it can."""
    return _OBSTACLES[name](site, devices) or _split(site, devices)


def _cudnn(site: Site, devices: OnDevices) -> str:
    if devices.platform != "gpu" or devices.capability is None or devices.capability < AMPERE:
        return f"cuDNN needs an NVIDIA GPU of compute capability 8.0, not {_shown(devices)}"
    if site.dtype not in HALVES:
        return f"cuDNN takes bfloat16 and float16, not {jnp.dtype(site.dtype).name}"
    most = 256 if devices.capability >= HOPPER else 128
    if site.head_dim % 8 or site.head_dim > most:
        return f"cuDNN takes heads of 8, 16, ... {most} channels, not {site.head_dim}"
    return ""


def _pallas(site: Site, devices: OnDevices) -> str:
    if devices.platform != "tpu":
        return f"the kernel is one for TPUs, not {_shown(devices)}"
    if site.dtype != jnp.bfloat16:
        return f"the kernel is for bfloat16, not {jnp.dtype(site.dtype).name}"
    if site.queries != site.keys or site.keys > SHORT:
        return f"the kernel is for sequences of up to {SHORT} tokens that attend to themselves"
    if devices.mesh.shape[devices.heads] > 1:
        return "the kernel has all heads of a sequence on one device"
    return ""


_OBSTACLES: dict[str, Callable[[Site, OnDevices], str]] = {"cudnn": _cudnn, "pallas": _pallas}


_FUSED = {"gpu": "cudnn", "tpu": "pallas"}


def _split(site: Site, devices: OnDevices) -> str:
    parts = devices.shards() * max(site.windows, 1)
    if site.sequences % parts:
        return f"{site.sequences} sequences do not divide over {parts}"
    if site.heads % devices.mesh.shape[devices.heads]:
        return f"{site.heads} heads do not divide over {devices.mesh.shape[devices.heads]} devices"
    return ""


def _shown(devices: OnDevices) -> str:
    first = devices.mesh.devices.flat[0]
    capability = f" ({devices.capability[0]}.{devices.capability[1]})" if devices.capability else ""
    return f"{first.device_kind}{capability}"


def by_shards(
    function: Callable, attention: "str | OnDevices", split_heads: bool, *arrays: jax.Array | None
) -> jax.Array:
    """function(*arrays, bias) on each device's own sequences, and its own heads; without a mesh of several, as it is.

    XLA cannot divide a kernel that it does not know, and would bring all sequences to every device.

    Args:
        function: a function of sequences (b, n, ...) and a bias (w, heads or 1, n, m) or None, which comes last.
        attention: the attribute `attention` of the model.
        split_heads: whether the third axis of the sequences counts heads.
        arrays: the arguments of `function`.
    """
    if not isinstance(attention, OnDevices) or attention.mesh.size == 1:
        return function(*arrays)
    *sequences, bias = arrays
    heads = (attention.heads, None) if split_heads else (None,)
    rows = PartitionSpec(attention.rows, None, *heads)
    shared = PartitionSpec(None, attention.heads if bias is not None and bias.shape[1] > 1 else None)
    specs = (*(rows for _ in sequences), None if bias is None else shared)
    return jax.shard_map(function, mesh=attention.mesh, in_specs=specs, out_specs=rows, check_vma=False)(*arrays)
