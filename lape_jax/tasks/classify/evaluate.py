"""Evaluation: every example exactly once, on any number of devices and hosts."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from lape_jax.errors import UserError
from lape_jax.parallel import fit, hosts, sharding
from lape_jax.parallel.arrays import blank, place
from lape_jax.tasks.classify import loss


class Evaluator:
    """Means of the task's metrics over a data set.

    Args:
        model: called with `train=False`.
        config: the config of the run; `eval_batch_size` is rounded up to what the devices divide.
        mesh: the mesh of devices that it runs on.
        batches: (batch size, i, n) -> the i-th of n equal parts of every batch, the last batch padded with mask 0.
        examples: in the data set.
        shapes: shape and type of everything that an example has in a batch.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        mesh: jax.sharding.Mesh,
        batches: Callable[[int, int, int], Iterable[dict]],
        examples: int,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
    ):
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = math.ceil(config.eval_batch_size / shards) * shards
        self._rows = sharding.batch_sharding(mesh, self._batch_size, setting="eval_batch_size")
        self._part = sharding.host_share(mesh, self._batch_size, setting="eval_batch_size")
        self._batches = batches
        self._count = math.ceil(examples / self._batch_size)
        self._mesh, self._shapes = mesh, shapes
        sums = sharding.pin_batch(loss.evaluation_sums(fit.attention(model, mesh), config), mesh)
        self._sums = jax.jit(sums, out_shardings=sharding.replicated(mesh))

    def __call__(self, variables: Any, prefix: str = "val/") -> dict[str, float]:
        """{prefix + metric: value}: top1 and top5 in percent, loss in nats, examples counted.

        Args:
            variables: all collections of the model's variables.
            prefix: what the names of metrics begin with.

        Raises:
            UserError: an example cannot be read; on all processes, whichever it was.
        """
        pending, failures = [], []  # not read before the end, so that no accelerator waits for the host
        for batch in self._read(failures):
            placed = {name: place(array, self._rows) for name, array in batch.items()}
            pending.append(sharding.in_turn(self._sums(variables, placed), self._mesh))
        hosts.fail_together(failures[0] if failures else None)
        sums = [jax.device_get(sums) for sums in pending]
        total = {name: math.fsum(float(batch[name]) for batch in sums) for name in sums[0]}
        count = total["examples"]
        if not count:
            raise UserError("none of the examples has a class that was learned: there is nothing to evaluate by")
        return {
            f"{prefix}top1": 100 * total["top1"] / count,
            f"{prefix}top5": 100 * total["top5"] / count,
            f"{prefix}loss": total["loss"] / count,
            f"{prefix}examples": int(count),
        }

    def _read(self, failures: list[UserError]) -> Iterator[dict]:
        """This process's part of all batches; blank ones after a failure, because the other processes go on."""
        made = 0
        try:
            for batch in self._batches(self._batch_size, *self._part):
                yield batch
                made += 1
        except UserError as error:
            if jax.process_count() == 1:
                raise
            failures.append(error)
            for _ in range(made, self._count):
                yield blank(self._batch_size // self._part[1], self._shapes)
