"""Evaluation: every example exactly once, on any number of devices and hosts."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from lape_jax.tasks import classify
from lape_jax.train import sharding
from lape_jax.train.feed import place


class Evaluator:
    """Means of the task's metrics over a data set.

    Args:
        model: called with `train=False`.
        config: the run's; `eval_batch_size` is rounded up to what the devices divide.
        mesh: of the devices.
        batches: () -> this host's part of every batch, the last one padded with mask 0; called with the batch size.
    """

    def __init__(self, model: Any, config: Any, mesh: jax.sharding.Mesh, batches: Callable[[int], Iterable[dict]]):
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = math.ceil(config.eval_batch_size / shards) * shards
        self._rows = sharding.batch_sharding(mesh, self._batch_size, setting="eval_batch_size")
        self._batches = batches
        self._sums = jax.jit(classify.evaluation_sums(model, config), out_shardings=sharding.replicated(mesh))

    def __call__(self, params: Any, prefix: str = "val/") -> dict[str, float]:
        """{prefix + metric: value}: top1 and top5 in percent, loss in nats, examples counted."""
        pending = []  # not read before the end, so that the device never waits for the host
        for batch in self._batches(self._batch_size):
            pending.append(self._sums(params, {name: place(array, self._rows) for name, array in batch.items()}))
        sums = [jax.device_get(sums) for sums in pending]
        total = {name: math.fsum(float(batch[name]) for batch in sums) for name in sums[0]}
        count = total["examples"]
        return {
            f"{prefix}top1": 100 * total["top1"] / count,
            f"{prefix}top5": 100 * total["top5"] / count,
            f"{prefix}loss": total["loss"] / count,
            f"{prefix}examples": int(count),
        }
