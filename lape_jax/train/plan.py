"""How long everything in a run takes, in steps, and how fast it learns."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from lape_jax.data import order
from lape_jax.errors import UserError
from lape_jax.train import chrono, optim


class Plan(NamedTuple):
    """The durations of a run, and its learning rate."""

    total: int  # steps in all
    mixing: int  # steps with mixup and CutMix
    every: dict[str, int]  # steps from one "log", "eval", "checkpoint" to the next
    steps_per_epoch: int
    learning_rate: Callable  # step -> rate

    def upto(self, step: int, most: int) -> int:
        """How many steps can be made from `step` on, `most` or up to what is due next."""
        boundaries = [interval * (step // interval + 1) for interval in self.every.values()]
        return min(*boundaries, self.total, step + most) - step

    def due(self, step: int) -> set[str]:
        """What is due after `step`: at the end, everything."""
        return {name for name, interval in self.every.items() if step % interval == 0 or step == self.total}


def make(config: ConfigDict, examples: int) -> Plan:
    """The plan of `config` for a training set of so many examples.

    Raises:
        UserError: durations that contradict each other, or a batch larger than an epoch.
    """
    steps_per_epoch = order.Order.of(config).steps_per_epoch(examples)
    duration = functools.partial(chrono.steps, config, batch_size=config.batch_size, steps_per_epoch=steps_per_epoch)
    total = duration("total")
    if total >= 2**31:
        raise UserError(
            f"{_given(config, 'total')} makes {total:g} steps, and they are counted up to 2**31: make it less"
        )
    warmup, cooldown = duration("warmup", total_steps=total), duration("cooldown", total_steps=total, default=0)
    if 0 < total - cooldown < warmup:
        left = f" less {cooldown} of {_given(config, 'cooldown')}" if cooldown else ""
        raise UserError(
            f"{_given(config, 'warmup')} is a warm-up of {warmup} steps, longer than the {total} steps of "
            f"{_given(config, 'total')}{left}: make it shorter, for example --config.warmup_percent=5"
        )
    learning_rate = optim.schedule(
        config.optimizer,
        total,
        warmup,
        batch_size=config.batch_size,
        cooldown_steps=cooldown,
        steps_per_epoch=steps_per_epoch,
    )
    return Plan(
        total=total,
        mixing=duration("mix", total_steps=total, default=total),
        every={name: duration(name, total_steps=total) for name in ("log", "eval", "checkpoint")},
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
    )


def _given(config: ConfigDict, name: str) -> str:
    """The duration `name` as it was given, such as "config.total_epochs = 3.0"."""
    (key,) = chrono.keys(config, name)
    return f"config.{key} = {config[key]}"
