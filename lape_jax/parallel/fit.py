"""How a model runs on the devices at hand: what "auto" means for its `attention`, `unroll` and `remat`.

None of the three changes parameters, nor results by more than the rounding of the type that is computed in.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lape_jax.nn import choice
from lape_jax.nn.choice import AUTO, Choice

ROWS, HEADS = ("data", "fsdp"), "tensor"  # axes of the mesh that a batch, and attention heads, are split over
SHARE = 0.5  # of a device's memory that may be kept for the backward pass: state, batch and temporaries need the rest

TRACED = 64  # images for which it is counted what a backward pass keeps; nothing is computed


class Fitted(NamedTuple):
    """A model as it runs, and why so, in words."""

    model: Any
    reason: str


def attention(model: Any, mesh: Mesh) -> Any:
    """`model`, whose attention knows that its programs are for the devices of `mesh`; a model without any as it is."""
    if not hasattr(model, "attention"):
        return model
    return model.clone(attention=choice.for_devices(model.attention, mesh, ROWS, HEADS))


def portable(model: Any) -> Any:
    """`model` with an attention that is the same program on every platform, as it is if it has none that is not."""
    if not hasattr(model, "attention"):
        return model
    name = str(model.attention)
    return model.clone(attention=name if name in ("xla", "blocks") else AUTO)


def training(model: Any, mesh: Mesh, shape: tuple[int, ...], images: int) -> Fitted:
    """`model` as it is trained on the devices of `mesh`.

    unroll: on GPUs all blocks, so that nothing is copied in and out of stacks of what they keep (of 160 GB that a step
        of DeiT-Ti moves on an H200, 512 images, by the compiled program, 40 are such copies); 1 on TPUs, where it
        changes nothing, and on CPUs, where it is quick to compile.
    remat: on a GPU "none" if what the backward pass would keep takes at most `SHARE` of the memory, and "attention"
        where it takes more, or nobody knows how much there is. On TPUs "attention": a scanned step moves less with it
        (benchmarks/tpu_compile.md). On CPUs "none".

    Args:
        shape: the shape of an image.
        images: how many images a step has, or each of its micro-batches, over all devices.
    """
    device, reasons = mesh.devices.flat[0], []
    gpu = device.platform == "gpu"
    if getattr(model, "unroll", None) == AUTO:
        depth = max(getattr(model, "depths", (model.depth,)))
        model = model.clone(unroll=depth if gpu else 1)
        reasons.append(f"unroll {model.unroll} ({device.platform})")
    if getattr(model, "remat", None) == AUTO:
        policy, why = "none", device.platform
        if device.platform == "tpu":
            policy = "attention"
        elif gpu:
            policy, why = _remat(model, mesh, shape, -(-images // (mesh.shape["data"] * mesh.shape["fsdp"])))
        model = model.clone(remat=policy)
        reasons.append(f"remat {policy} ({why})")
    return Fitted(attention(model, mesh), ", ".join(reasons))


def _remat(model: Any, mesh: Mesh, shape: tuple[int, ...], images: int) -> tuple[str, str]:
    memory = _memory(mesh.devices.flat[0])
    if memory is None:
        return "attention", "the size of the device's memory is unknown"
    kept = images * kept_bytes(attention(model, _alone(mesh)), shape)
    why = f"the backward pass would keep about {kept / 2**30:.1f} of {memory / 2**30:.0f} GiB"
    return ("none" if kept <= SHARE * memory else "attention"), why


def _alone(mesh: Mesh) -> Mesh:
    """Its first device."""
    return Mesh(mesh.devices[:1, :1, :1], mesh.axis_names)


def _memory(device: Any) -> int | None:
    """Bytes that programs may have on a device; None where it does not say."""
    with contextlib.suppress(jax.errors.JaxRuntimeError, NotImplementedError, AttributeError):
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def kept_bytes(model: Any, shape: tuple[int, ...]) -> float:
    """Bytes that differentiation of a forward pass in training asks to keep for each image, without remat.

    It is what `jax.vjp` returns for `TRACED` images, of which the weights in it are a small part. XLA makes some of it
    again rather than keep it, and fuses the rest otherwise, so the figure errs to the safe side.
    """

    def forward(variables, images):
        return model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])

    batch = jax.ShapeDtypeStruct((TRACED, *shape), jnp.float32)
    pull_back = jax.eval_shape(lambda *args: jax.vjp(forward, *args)[1], model.variable_shapes(), batch)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back)) / TRACED


def compiler_options(deterministic: bool, mesh: Mesh) -> dict[str, bool] | None:
    """What a training step is compiled with, on GPUs: XLA takes only what adds up in a fixed order, and tunes nothing.

    cuDNN's backward pass and scatters do not by default. (From XLA's sources; it has not run on a GPU here.)
    """
    return {"xla_gpu_deterministic_ops": True} if deterministic and mesh.devices.flat[0].platform == "gpu" else None


@contextlib.contextmanager
def noted() -> Iterator[dict[int, Choice]]:
    """{tokens: what attends among so many} of all attention that is traced meanwhile."""
    found: dict[int, Choice] = {}

    def note(method, args, kwargs, context):
        result = method(*args, **kwargs)
        if context.method_name == "choice":
            found[args[0][1]] = result
        return result

    with nn.intercept_methods(note):
        yield found


def described(found: dict[int, Choice]) -> str:
    """What `noted` has found, in words; "" if that is nothing."""
    names = {}
    for tokens, (name, reason) in sorted(found.items()):
        names.setdefault((name, reason), []).append(str(tokens))
    return "; ".join(f"{name} for {', '.join(tokens)} tokens ({why})" for (name, why), tokens in names.items())
