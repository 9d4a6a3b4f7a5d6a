"""A run of one seed, as `lape_jax.train.drive` drives it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lape_jax import tasks
from lape_jax.errors import UserError, listed
from lape_jax.parallel import fit
from lape_jax.train import feed, setup
from lape_jax.train import state as states
from lape_jax.train.checkpoint import Checkpoints
from lape_jax.train.chrono import Chrono
from lape_jax.train.plan import Plan
from lape_jax.train.writers import Writers

Results = Mapping[str, float]


@dataclasses.dataclass
class SingleRun:
    """A run of one seed, with all that it is driven by.

    Attributes:
        config, plan: what the run is to do, and when.
        feed: makes the steps.
        evaluator: see `lape_jax.tasks.task.Task.evaluator`.
        checkpoints, writers, clock: what saves the run, logs it, and measures its time.
        examples: how many examples the training set has.
    """

    config: ConfigDict
    plan: Plan
    feed: feed.Resident | feed.Streamed
    evaluator: Callable[..., dict]
    checkpoints: Checkpoints
    writers: Writers
    clock: Chrono
    examples: int
    over = False
    _hinted = False

    @property
    def max_steps(self) -> int:
        return self.feed.max_steps

    def first(self, state: states.TrainState, step: int) -> states.TrainState:
        line = self.writers.console.line
        with self._saving_first(state), setup.compiling(self.config), fit.noted() as chosen:
            state = jax.block_until_ready(self.feed.run(state, step, 1))
        if chosen:
            line(f"attention: {fit.described(chosen)}")
        line(f"first step made after {self.clock.seconds:.1f} s (compilation)")
        self.clock.start(step + 1, self.feed.waited)
        return state

    def steps(self, state: states.TrainState, step: int, count: int) -> states.TrainState:
        with self._saving_first(state):
            return self.feed.run(state, step, count)

    def check(self, state: states.TrainState, step: int) -> None:
        """Raises UserError unless `state` is that of `step`, and finite."""
        with self._saving_first(state):
            self.feed.check(state, step)
        bad = int(state.first_bad_step)
        if bad == states.NEVER:
            return
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        indices = listed(setup.batch_indices(self.config, self.examples, bad, self.config.seed).tolist(), most=400)
        raise UserError(
            f"the loss or its gradient became NaN or infinite in step {bad} (after {bad} good ones); the last good "
            f"checkpoint is {f'that of step {saved[-1]}' if saved else 'none'}; a smaller --config.optimizer.lr or a "
            f"longer warm-up may help; examples of the batch (all by lape_jax.train.setup.batch_indices): [{indices}]"
        )

    def log(self, state: states.TrainState, step: int) -> states.TrainState:
        scalars = states.means(state.sums, tasks.of(self.config)) | {"lr": float(self.plan.learning_rate(step - 1))}
        scalars |= {"epoch": step / self.plan.steps_per_epoch} | self.clock.tick(step, self.feed.waited)
        self.writers.write(step, scalars)
        self.writers.console.progress(step, self.plan.total, scalars, self.clock.eta)
        if scalars.get("data_wait_frac", 0) > feed.WAITS and not self._hinted:
            self._hinted = True
            self.writers.console.line(feed.hint(self.config))
        return state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))

    def evaluate(self, state: states.TrainState, step: int) -> Results:
        with self.clock.paused(), self._saving_first(state):
            results = evaluated(self.evaluator, state)
        self.writers.write(step, results)
        self.writers.console.line(f"step {step}/{self.plan.total}  {tasks.of(self.config).describe(results)}")
        return results

    def save(self, state: states.TrainState, step: int, results: Results | None) -> None:
        self.checkpoints.save(step, state, results)

    @contextlib.contextmanager
    def _saving_first(self, state: states.TrainState) -> Iterator[None]:
        """If the data cannot be read any further, what was trained so far is saved before the run ends."""
        try:
            yield
        except UserError:
            with jax.transfer_guard("allow"):
                if int(state.first_bad_step) == states.NEVER:
                    self.checkpoints.save(int(state.step), state)
            raise


def evaluated(evaluator: Callable[..., dict], state: states.TrainState) -> dict[str, float]:
    """The metrics of the weights, and of their EMA if there is one."""
    results = evaluator(state.variables)
    return results if state.ema is None else results | evaluator(state.ema, prefix="val/ema_")
