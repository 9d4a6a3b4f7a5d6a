"""Time and speed: durations in steps, images per second, time left, waiting for data, and MFU."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lape_jax.config.schema import DURATIONS
from lape_jax.errors import UserError

# Peak multiply-add rates of one JAX device, in FLOP/s (an add and a multiply are two), for dense bfloat16 inputs with
# float32 accumulation (float16 on V100 and T4, which have no bfloat16). The first name that stands in
# `device_kind` as whole words counts.
# TPUs: cloud.google.com/tpu/docs/system-architecture (one device is half a chip for v2 and v3).
# GPUs: NVIDIA's data sheets and architecture white papers, halved where they give rates with sparsity.
_PEAK_FLOPS = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),  # v5p
    ("TPU v6", 918e12),  # "TPU v6 lite"
    ("TPU v6e", 918e12),
    ("B200", 2250e12),
    ("H200", 989.4e12),
    ("GH200", 989.4e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
    ("V100", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("T4", 65e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("RTX A6000", 154.8e12),
)


def keys(config: ConfigDict, name: str) -> list[str]:
    """The keys that give the duration `name` in `config`: one of "{name}_steps", "{name}_epochs", ..., or none."""
    return [key for unit in DURATIONS[name] if config[key := f"{name}_{unit}"] is not None]


def steps(
    config: ConfigDict,
    name: str,
    *,
    batch_size: int,
    steps_per_epoch: int,
    total_steps: int | None = None,
    default: int | None = None,
) -> int:
    """The duration `name` of `config` in steps, whichever of its units is set, rounded to the nearest step.

    `{name}_steps`, `{name}_epochs` * steps_per_epoch, `{name}_examples` / batch_size, or `{name}_percent` / 100 *
    total_steps. At least 1, unless the duration is 0.

    Raises UserError unless exactly one unit is set, or none and there is a `default`.
    """
    given = keys(config, name)
    if not given and default is not None:
        return default
    if len(given) != 1:
        every = ", ".join(f"{name}_{unit}" for unit in DURATIONS[name])
        raise UserError(f"the {name} duration needs one of {every}; the config sets {' and '.join(given) or 'none'}")
    value = config[given[0]]
    if total_steps is None and given[0].endswith("_percent"):
        raise ValueError(f"{given[0]} needs total_steps")
    scale = {
        "steps": 1,
        "epochs": steps_per_epoch,
        "examples": 1 / batch_size,
        "percent": (total_steps or 0) / 100,
    }[given[0].removeprefix(f"{name}_")]
    return max(1, round(value * scale)) if value else 0


class Chrono:
    """Measures a run between `start` and now.

        chrono = Chrono(total_steps, batch_size, training_flops(...), peak_flops(jax.devices()))
        ... first step, which compiles ...
        chrono.start(step)
        while step < total_steps:
            ... steps, until their results have arrived ...
            scalars = chrono.tick(step, waited)
            with chrono.paused():
                evaluate(...)

    Args:
        total_steps: steps of the whole run.
        batch_size: images of one step, over all devices.
        flops_per_image: FLOPs of a training step for one image, see `training_flops`; 0 if unknown.
        peak: FLOP/s of all devices together; 0 if unknown.
        devices: how many devices share the batch.
        clock: returns seconds.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        flops_per_image: float = 0.0,
        peak: float = 0.0,
        *,
        devices: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.total_steps = total_steps
        self.batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._peak = peak
        self._devices = devices
        self._clock = clock
        self.start(0)

    def start(self, step: int, waited: float = 0.0) -> None:
        """Starts measuring at `step`: to be called when the first step, which compiles, has ended."""
        self._first = self._last = (step, self._clock())
        self._paused = self._paused_before = 0.0
        self._waited = waited

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work that is not training, such as evaluation: counts for the time left, not for the speed."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    def tick(self, step: int, waited: float = 0.0) -> dict[str, float]:
        """The scalars of the interval that ends now, at `step`; empty if no step was made in it.

        img_per_sec and img_per_sec_per_device: without pauses. data_wait_frac: fraction of that time in which the run
        waited for data. mfu: FLOP/s of the model / peak, if both are known.

        Args:
            step: steps made so far.
            waited: seconds waited for data so far; what counts is the difference to the last call.
        """
        last_step, last_time = self._last
        now = self._clock()
        seconds = now - last_time - (self._paused - self._paused_before)
        waited, self._waited = waited - self._waited, waited
        self._last, self._paused_before = (step, now), self._paused
        if step <= last_step or seconds <= 0:
            return {}
        rate = (step - last_step) * self.batch_size / seconds
        scalars = {
            "img_per_sec": rate,
            "img_per_sec_per_device": rate / self._devices,
            "data_wait_frac": min(waited / seconds, 1.0),
        }
        if self._flops_per_image and self._peak:
            scalars["mfu"] = rate * self._flops_per_image / self._peak
        return scalars

    @property
    def seconds(self) -> float:
        """Since `start`, pauses included."""
        return self._clock() - self._first[1]

    @property
    def img_per_sec(self) -> float:
        """From `start` to the last `tick`, without pauses."""
        made = self._last[0] - self._first[0]
        seconds = self._last[1] - self._first[1] - self._paused_before
        return made * self.batch_size / seconds if made > 0 and seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace from `start` to the last `tick`, pauses included; None before the first step."""
        made = self._last[0] - self._first[0]
        if made <= 0:
            return None
        return (self._last[1] - self._first[1]) / made * max(self.total_steps - self._last[0], 0)


def training_flops(
    model: nn.Module,
    variables: Any,
    teacher: tuple[nn.Module, Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> float:
    """FLOPs of a training step for one image: three forward passes, and one of a `teacher` (model, variables).

    The backward pass counts as two (Chowdhery et al., PaLM, arXiv:2204.02311, appendix B); what remat computes again
    counts for nothing. The arguments are those of `flops_per_image`.
    """
    taught = flops_per_image(*teacher) if teacher else 0.0
    return 3 * flops_per_image(model, variables, shape) + taught


def flops_per_image(model: nn.Module, variables: Any, shape: tuple[int, ...] | None = None) -> float:
    """FLOPs of the matrix products and convolutions in one forward pass for one image; a multiply-add is two.

    As usual for MFU, nothing else counts: it is what a device's matrix units could be busy with. DeiT-Ti at 224 pixels
    takes 2.51e9. The model is traced, not compiled, with plain attention, whose products are visible.

    Args:
        model: with `input_shape` (height, width, channels).
        variables: what `model.apply` takes; arrays or jax.ShapeDtypeStruct.
        shape: the shape of the image, if it is another than `input_shape`.
    """
    if hasattr(model, "attention"):
        model = model.clone(attention="xla")
    image = jax.ShapeDtypeStruct((1, *(shape or model.input_shape)), jnp.float32)
    forward = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False)[0])
    return float(matrix_flops(forward(variables, image)))


def matrix_flops(jaxpr: Any) -> int:
    """FLOPs of all dot_general and conv_general_dilated in `jaxpr`; the body of a scan counts `length` times."""
    flops = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval
            flops += 2 * eqn.outvars[0].aval.size * math.prod(lhs.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, features = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
            flops += 2 * eqn.outvars[0].aval.size * kernel.size // kernel.shape[features]
        inner = [value for value in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr) if _is_jaxpr(value)]
        flops += eqn.params.get("length", 1) * sum(map(matrix_flops, inner))
    return flops


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def peak_flops(devices: Sequence[jax.Device]) -> float:
    """FLOP/s that all `devices` together could reach at best, the denominator of MFU.

    From a table of bfloat16 rates. A device that is not in it counts with what a large float32 matrix product reaches
    on it, measured here in less than half a second; CPU devices of one process share its cores and count as one.
    """
    known = [_known_peak(device.device_kind) for device in devices]
    total = sum(peak for peak in known if peak)
    unknown = [device for device, peak in zip(devices, known, strict=True) if not peak]
    if unknown:
        shared = all(device.platform == "cpu" for device in unknown)
        count = len({device.process_index for device in unknown}) if shared else len(unknown)
        total += count * _measured_peak(next(d for d in unknown if d.process_index == jax.process_index()))
    return total


def _known_peak(kind: str) -> float | None:
    return next((peak for name, peak in _PEAK_FLOPS if re.search(rf"\b{name}\b", kind)), None)


def _measured_peak(device: jax.Device, size: int = 1024, seconds: float = 0.25) -> float:
    """FLOP/s of the fastest of the float32 products of (size, size) matrices that fit into `seconds`."""
    with jax.default_device(device):
        matrix = jnp.ones((size, size), jnp.float32)
        product = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    product(matrix, matrix).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
