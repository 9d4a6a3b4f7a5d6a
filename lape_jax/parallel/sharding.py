"""Where arrays live: one mesh with axes (data, fsdp, tensor), and a strategy for every parameter by (regex, strategy).

Strategies, joined by "+" if there are two ("fsdp+tensor(-1)"):
    replicate    a full copy on every device
    fsdp         the largest axis that the mesh's fsdp size divides is split over `fsdp`; a parameter with fewer than
                 FSDP_MIN_SIZE numbers, or without such an axis, is replicated. "fsdp(n)" sets the limit to n.
    tensor(a)    axis a (negative: from the end) is split over `tensor`
Block parameters are stacked, (layers, ...): the scan over layers slices their first axis, so that is never split.

Ready lists for `config.sharding`: REPLICATED, FSDP, and TENSOR for the Vision Transformers, which splits attention
heads and MLP channels over `tensor` (Shoeybi et al., Megatron-LM, arXiv:1909.08053) and what remains over `fsdp`.
The fused qkv holds q, k and v one after another and not head by head, so XLA moves what its parts put out to the heads
(in each block two collective-permutes on the way forth and four all-to-alls on the way back, with a `tensor` of 2).
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lape_jax.data.order import Share
from lape_jax.errors import UserError, nearest
from lape_jax.models import rules
from lape_jax.nn.batch_norm import BatchNorm

AXES = ("data", "fsdp", "tensor")
FSDP_MIN_SIZE = 2**14
# Of what has a batch; the norm of a position embedding is none of these.
_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.LayerNorm, BatchNorm)
STRATEGIES = ("replicate", "fsdp", "fsdp(min_size)", "tensor(axis)")

REPLICATED = ((r".*", "replicate"),)
FSDP = ((r".*", "fsdp"),)
TENSOR = (
    (r"(.*/)?blocks/(attn/qkv|mlp/fc1)/kernel", "fsdp+tensor(-1)"),  # outputs: heads, hidden channels
    (r"(.*/)?blocks/(attn/qkv|mlp/fc1)/bias", "tensor(-1)"),
    (r"(.*/)?blocks/(attn/proj|mlp/fc2)/kernel", "fsdp+tensor(-2)"),  # inputs: these; one sum over `tensor` follows
    (r"(.*/)?blocks/attn/relative_position_bias_table", "tensor(-1)"),
    *FSDP,
)


def make_mesh(config: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh, axes (data, fsdp, tensor), in the order that suits the network between the devices.

    Over several processes the devices of each follow one another, so that each has consecutive rows of a batch; on a
    TPU slice the order that suits its links best would scatter them.

    Args:
        config: with the sizes data, fsdp and tensor; at most one may be -1, "all the remaining devices".
        devices: by default all of this job's.

    Raises:
        UserError: sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in AXES}
    shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"config.mesh ({shown}): sizes must be positive, and at most one of them -1 (all other devices)"
        )
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"config.mesh ({shown}) does not fit {len(devices)} devices: the sizes must multiply to {len(devices)}, "
            f"with -1 for whatever is left"
        )
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes.values())
    types = (AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    processes = [device.process_index for device in mesh.devices.flat]
    if processes != sorted(processes):
        in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(in_order).reshape(shape), AXES, axis_types=types)
    return mesh


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh whose devices, by default all of this job's, share nothing but the batch."""
    return make_mesh(SimpleNamespace(data=-1, fsdp=1, tensor=1), devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, batch_size: int, *, setting: str = "batch_size") -> NamedSharding:
    """The first axis split over data and fsdp (both are data-parallel); the rest whole.

    Raises:
        UserError: a batch size that data * fsdp does not divide; `setting` names it.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise UserError(
            f"{setting} {batch_size} does not divide over {shards} devices (mesh data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}): use a multiple of {shards}"
        )
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def host_share(mesh: Mesh, batch_size: int, *, setting: str = "batch_size") -> Share:
    """Which part of every batch this process holds.

    There are as many parts as processes, or less: those that share rows of devices, along `tensor`, hold the same
    examples.

    Raises:
        UserError: as `batch_sharding`, or the processes hold unequal parts.
    """
    rows = batch_sharding(mesh, batch_size, setting=setting).addressable_devices_indices_map((batch_size,)).values()
    held = sorted({part.indices(batch_size)[:2] for (part,) in rows})
    start, stop = held[0][0], held[-1][1]
    share = stop - start
    if start % share or batch_size % share:
        shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise UserError(
            f"config.mesh ({shape}) gives the processes unequal parts of a batch: config.mesh.tensor must divide the "
            f"devices of a process, or be a multiple of them"
        )
    return Share(start // share, batch_size // share)


def pin_batch(function: Callable, mesh: Mesh) -> Callable:
    """`function`, in which what the layers of a model put out stays split over data and fsdp along the batch.

    Where parameters are split over fsdp, too, XLA may choose to split activations along their channels instead, and
    moves them to and fro: a training step of a ViT with FSDP has 59 all-gathers and 7 all-to-alls, and 10 all-gathers,
    of weights, when they are held. The values are the same.
    """
    if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return function
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def pin(layer, args, kwargs, context):
        out = layer(*args, **kwargs)
        if not isinstance(context.module, _LAYERS) or context.method_name != "__call__" or out.shape[0] % shards:
            return out
        spec = PartitionSpec(("data", "fsdp"), *[PartitionSpec.UNCONSTRAINED] * (out.ndim - 1))
        return jax.lax.with_sharding_constraint(out, NamedSharding(mesh, spec))

    @functools.wraps(function)
    def pinned(*args):
        with nn.intercept_methods(pin):
            return function(*args)

    return pinned


def param_shardings(params: Any, mesh: Mesh, strategies: Sequence[Any]) -> Any:
    """The sharding of every parameter.

    Args:
        params: the parameter tree (arrays or jax.ShapeDtypeStruct), named as in `lape_jax.models.rules`.
        mesh: from `make_mesh`.
        strategies: ordered (regex, strategy) pairs, see the module docstring; they must cover every parameter.

    Raises:
        UserError: an uncovered parameter, an unknown strategy, or an axis that cannot be split as asked.
    """
    chosen = rules.assign(strategies, params, setting="config.sharding")

    def sharding(path, leaf, strategy):
        return NamedSharding(mesh, _spec(rules.path_name(path), leaf.shape, strategy, mesh))

    return jax.tree_util.tree_map_with_path(sharding, params, chosen)


def state_shardings(state: Any, params: Any, mesh: Mesh, strategies: Sequence[Any]) -> Any:
    """The sharding of everything in a training state: each copy of a parameter lies as the parameter does.

    The parameters, their averages, the optimiser moments and accumulated gradients are recognised by their path ending
    in a whole parameter path ("opt_state/0/mu/head/kernel") *and* having its shape; all else (counters) is replicated.

    Args:
        state: any pytree of arrays or jax.ShapeDtypeStruct that contains the parameters or copies of them.
        params: the parameter tree (arrays or jax.ShapeDtypeStruct).
        mesh: from `make_mesh`.
        strategies: see `param_shardings`.

    Raises:
        UserError: as `param_shardings`.
    """
    shardings = jax.tree.leaves(param_shardings(params, mesh, strategies))
    named = rules.flat_names(params).items()
    known = {(tuple(name.split("/")), leaf.shape): s for (name, leaf), s in zip(named, shardings, strict=True)}

    def sharding(path, leaf):
        parts = tuple(rules.path_name(path).split("/"))
        endings = (known.get((parts[start:], leaf.shape)) for start in range(len(parts)))  # the longest first
        return next((found for found in endings if found is not None), replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _spec(name: str, shape: tuple[int, ...], strategy: Any, mesh: Mesh) -> PartitionSpec:
    spec: list[str | None] = [None] * len(shape)
    # tensor(axis) names its axis, so it goes before fsdp, which takes what is left.
    for kind, argument in sorted(_parse(strategy), reverse=True):
        if kind == "tensor":
            axis = argument + len(shape) if argument < 0 else argument
            _check_tensor_axis(name, shape, argument, axis, mesh)
            spec[axis] = "tensor"
        elif kind == "fsdp" and mesh.shape["fsdp"] > 1 and math.prod(shape) >= argument:
            first = int(rules.is_stacked(name, shape))
            free = [a for a in range(first, len(shape)) if spec[a] is None and shape[a] % mesh.shape["fsdp"] == 0]
            if free:
                spec[max(free, key=lambda a: (shape[a], a))] = "fsdp"
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def _parse(strategy: Any) -> list[tuple[str, int]]:
    parsed = []
    for part in str(strategy).split("+"):
        match = re.fullmatch(r"\s*(replicate|fsdp|fsdp\(\d+\)|tensor\(-?\d+\))\s*", part)
        if not match:
            raise UserError(f"config.sharding: the strategy {nearest(part.strip(), STRATEGIES)}")
        kind, _, argument = match[1].rstrip(")").partition("(")
        parsed.append((kind, int(argument) if argument else FSDP_MIN_SIZE))
    if len(parsed) > 1 and {kind for kind, _ in parsed} != {"fsdp", "tensor"}:
        raise UserError(f"config.sharding: the strategy {strategy!r}: only one fsdp and one tensor can be joined by +")
    return parsed


def _check_tensor_axis(name: str, shape: tuple[int, ...], asked: int, axis: int, mesh: Mesh) -> None:
    if not 0 <= axis < len(shape):
        raise UserError(
            f"config.sharding: tensor({asked}) is not possible, as {name!r} of shape {shape} has no such axis: use one "
            f"of {int(rules.is_stacked(name, shape))} to {len(shape) - 1}"
        )
    if axis < int(rules.is_stacked(name, shape)):
        raise UserError(
            f"config.sharding: tensor({asked}) is not possible, as the first axis of {name!r} of shape {shape} counts "
            f"layers: use a later one"
        )
    if shape[axis] % mesh.shape["tensor"]:
        raise UserError(
            f"config.sharding: tensor({asked}) is not possible, as config.mesh.tensor {mesh.shape['tensor']} does not "
            f"divide that axis of {name!r}, whose shape is {shape}: use another axis, or 'replicate'"
        )


def in_turn(results: Any, mesh: Mesh) -> Any:
    """`results` of a program; waited for on several CPU devices, where too many programs in flight would never end.

    Such devices share one pool of threads, hardly more than there are devices, and a program with collective operations
    needs a thread of each device at once. A device takes 32 programs; one more holds a thread until there is room for
    it (jaxlib 0.10). If that thread is one which the programs in flight need, XLA ends the process after 40 seconds:
    "Termination timeout for all reduce". benchmarks/in_flight.py shows it.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(results)
    return results
