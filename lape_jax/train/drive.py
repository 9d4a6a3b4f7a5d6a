"""The one training loop: steps, and what is due between them, until the end or a signal."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from lape_jax.train.plan import Plan
from lape_jax.train.signals import StopRequest
from lape_jax.train.state import TrainState


@runtime_checkable
class Run(Protocol):
    """What is driven: one run (`lape_jax.train.single_run`), or several that share steps (`lape_jax.sweeps.seeds`).

    Attributes:
        plan: what is due when.
        max_steps: most steps of a dispatch.
        over: whether nothing is left that is worth a step.
    """

    plan: Plan
    max_steps: int
    over: bool

    def first(self, state: TrainState, step: int) -> TrainState:
        """Makes one step from `step`, the first of this process: it compiles, and the clock starts behind it."""

    def steps(self, state: TrainState, step: int, count: int) -> TrainState:
        """Makes `count` steps from `step`; nothing but what is sent explicitly moves between host and devices."""

    def check(self, state: TrainState, step: int) -> None:
        """Looks whether the state is that of `step`, and finite. Before whatever is due."""

    def log(self, state: TrainState, step: int) -> TrainState:
        """Writes a line on the steps since the last one, and returns the state with its sums at zero."""

    def evaluate(self, state: TrainState, step: int) -> Any:
        """Evaluates, writes, and returns the results."""

    def save(self, state: TrainState, step: int, results: Any) -> None:
        """Saves a checkpoint; `results` are of this state, or None."""


class Driven(NamedTuple):
    """Where `drive` ended: the state, its step, and the results of the last evaluation, or None."""

    state: TrainState
    step: int
    results: Any


def drive(run: Run, state: TrainState, step: int, stop: StopRequest) -> Driven:
    """Makes steps from `step` on until the plan's total, a signal, or the run is over."""
    results, begin = None, step
    while step < run.plan.total and not stop.due() and not run.over:
        if step == begin:
            state, count = run.first(state, step), 1
        else:
            count = run.plan.upto(step, run.max_steps)
            with jax.transfer_guard("disallow"):
                state = run.steps(state, step, count)
        step += count
        due = run.plan.due(step)
        if due:
            run.check(state, step)
        if "log" in due:
            state = run.log(state, step)
        if "eval" in due:
            results = run.evaluate(state, step)
        if "checkpoint" in due:
            run.save(state, step, results if "eval" in due else None)
    return Driven(state, step, results)
