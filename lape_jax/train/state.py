"""The training state, created sharded, and the one update that advances it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lape_jax.parallel import sharding
from lape_jax.tasks.task import Task

NEVER = -1  # value of `first_bad_step` while every step was finite


@flax.struct.dataclass
class TrainState:
    """Everything that a run is at a step; what a checkpoint holds.

    The leaves are arrays, or what stands for them in trees of the same structure: shapes, shardings.
    """

    step: Any  # int32, updates made so far
    params: Any
    collections: Any  # by name, the model's other variables: "batch_stats", moved by training, and "constants"
    ema: Any  # exponential moving average of `variables`, with the constants as they are; or None
    opt_state: Any
    sums: dict[str, Any]  # since the last log line: grad_norm, steps, and the task's, with loss and examples
    first_bad_step: Any  # int32, the first step that was bad (see `update_function`), else NEVER

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, **self.collections}


def zero_sums(task: Task) -> dict[str, jax.Array]:
    return {name: jnp.zeros((), jnp.float32) for name in (*task.sums, "grad_norm", "steps")}


def means(sums: dict[str, Any], task: Task) -> dict[str, float]:
    """What a log line says of the steps that `sums` covers."""
    values = {name: float(value) for name, value in jax.device_get(sums).items()}
    return task.means(values) | {"train/grad_norm": values["grad_norm"] / values["steps"]}


def initialiser(
    model: Any, tx: optax.GradientTransformation, ema: bool, task: Task
) -> Callable[[jax.Array], TrainState]:
    """The function key -> state at step 0."""

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *model.input_shape), jnp.float32))
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections={name: tree for name, tree in variables.items() if name != "params"},
            ema=jax.tree.map(jnp.copy, variables) if ema else None,
            opt_state=tx.init(params),
            sums=zero_sums(task),
            first_bad_step=jnp.full((), NEVER, jnp.int32),
        )

    return init


def abstract(init: Callable, mesh: jax.sharding.Mesh, strategies: Any) -> TrainState:
    """Shapes, types and shardings of the state that `init` makes: what creation and restoring go by.

    Raises:
        UserError: the sharding strategies do not cover or do not fit the parameters.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    placed = sharding.state_shardings(shapes, shapes.params, mesh, strategies)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)


def create(init: Callable, abstract_state: TrainState, seed: int) -> TrainState:
    """The state at step 0; each device makes only the shards that it holds."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def update_function(
    loss: Callable,
    tx: optax.GradientTransformation,
    augment: Callable,
    *,
    seed: int | jax.Array,
    accumulate: int,
    ema_decay: float,
) -> Callable[..., TrainState]:
    """The function (state, batch, *frozen) -> state of one optimiser step.

    Args:
        loss: (params, collections, batch, key, *frozen) -> (summed loss, (dict of sums with "examples", collections as
            they are afterwards)), see `lape_jax.tasks.task.Task.loss`; `frozen`, a teacher's variables, reaches it from
            the update's arguments.
        tx: the optimiser.
        augment: (batch, key, step) -> batch, applied to the whole batch before it is cut up and differentiated.
        seed: with the step it determines all randomness of the update.
        accumulate: micro-batches that the batch is cut into; the gradient is that of the whole batch's mean loss. What
            BatchNorms normalise by is the statistics of a micro-batch, and their running means pass through all of them
            in turn, as if they were batches.
        ema_decay: d in ema <- d ema + (1 - d) variables, or 0 for no average. Running means of BatchNorms are averaged
            as parameters are (timm's ModelEma), constants copied.

    A step is bad if its loss, its gradient, its update or the collections after it are not finite.
    """
    gradient = jax.grad(loss, has_aux=True)

    def summed_gradient(params, collections, batch, key, *frozen):
        """((gradient, sums), collections afterwards) of the whole batch."""
        if accumulate == 1:
            gradients, (sums, collections) = gradient(params, collections, batch, key, *frozen)
            return (gradients, sums), collections
        # Row i goes to micro-batch i mod accumulate: each device keeps its own rows, nothing moves between them.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(carry, part):
            (total, collections), (index, micro) = carry, part
            found, (sums, collections) = gradient(params, collections, micro, jax.random.fold_in(key, index), *frozen)
            return (jax.tree.map(jnp.add, total, (found, sums)), collections), None

        first = jax.tree.map(lambda x: x[0], parts)
        found, (sums, _) = jax.eval_shape(gradient, params, collections, first, key, *frozen)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (found, sums))
        return jax.lax.scan(add, (zeros, collections), (jnp.arange(accumulate), parts))[0]

    def update(state: TrainState, batch: dict, *frozen: Any) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        with jax.named_scope("augment"):
            batch = augment(batch, augment_key, state.step)
        result = summed_gradient(state.params, state.collections, batch, loss_key, *frozen)
        (gradients, sums), collections = result
        examples = jnp.maximum(sums["examples"], 1)  # a batch may consist of unreadable images only
        gradients = jax.tree.map(lambda g: g / examples, gradients)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = average(state.ema, {"params": params, **collections}, ema_decay) if ema_decay else state.ema
        norm = global_norm(gradients)
        others = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(collections))
        bad = ~jnp.isfinite(sums["loss"] + norm + optax.tree.norm(updates) + others)
        return TrainState(
            step=state.step + 1,
            params=params,
            collections=collections,
            ema=ema,
            opt_state=opt_state,
            sums=jax.tree.map(jnp.add, state.sums, {**sums, "grad_norm": norm, "steps": jnp.ones(())}),
            first_bad_step=jnp.where(bad & (state.first_bad_step == NEVER), state.step, state.first_bad_step),
        )

    return update


def average(ema: dict[str, Any], variables: dict[str, Any], decay: float) -> dict[str, Any]:
    """decay * ema + (1 - decay) * variables; the constants stay as they are."""
    moved = {name: tree for name, tree in variables.items() if name != "constants"}
    means = jax.tree.map(lambda e, v: decay * e + (1 - decay) * v, {name: ema[name] for name in moved}, moved)
    return {**ema, **means}


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together; finite wherever it can be, because nothing larger is squared than 1.

    The gradient of LaPE with `sincos_2d` needs it at initialisation: the class row of the table is zero, each PE
    LayerNorm multiplies the gradient of that row by 1/sqrt(eps) = 1000, and after twelve of them 1e29 squared would
    overflow. (Adam divides such a gradient by an infinite second moment: the bias never moves.)
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * optax.tree.norm(jax.tree.map(lambda leaf: leaf / scale, tree))
