"""The training state, created sharded, and the one update that advances it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lape_jax.train import sharding

NEVER = -1  # value of `first_bad_step` while every step was finite


@flax.struct.dataclass
class TrainState:
    """Everything that a run is at a step; what a checkpoint holds.

    The leaves are arrays, or what stands for them in trees of the same structure: shapes, shardings.
    """

    step: Any  # int32, updates made so far
    params: Any
    ema: Any  # running mean of params, or None
    opt_state: Any
    sums: dict[str, Any]  # since the last log line: loss, top1, examples, grad_norm, steps
    first_bad_step: Any  # int32, the first step whose loss, gradient or update was not finite, else NEVER


def zero_sums() -> dict[str, jax.Array]:
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "top1", "examples", "grad_norm", "steps")}


def initialiser(model: Any, tx: optax.GradientTransformation, ema: bool) -> Callable[[jax.Array], TrainState]:
    """The function key -> state at step 0."""

    def init(key: jax.Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, *model.input_shape), jnp.float32))["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params) if ema else None,
            opt_state=tx.init(params),
            sums=zero_sums(),
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
    loss: Callable, tx: optax.GradientTransformation, augment: Callable, *, seed: int, accumulate: int, ema_decay: float
) -> Callable[..., TrainState]:
    """The function (state, batch, *frozen) -> state of one optimiser step.

    Args:
        loss: (params, batch, key, *frozen) -> (summed loss, dict of sums with "examples"), as in
            `lape_jax.tasks.classify`; `frozen`, a teacher's variables, reaches it from the update's arguments.
        tx: the optimiser.
        augment: (batch, key, step) -> batch, applied to the whole batch before it is cut up and differentiated.
        seed: with the step it determines all randomness of the update.
        accumulate: micro-batches that the batch is cut into; the gradient is that of the whole batch's mean loss.
        ema_decay: d in ema <- d ema + (1 - d) params, or 0 for no average.
    """
    gradient = jax.grad(loss, has_aux=True)

    def summed_gradient(params, batch, key, *frozen):
        if accumulate == 1:
            return gradient(params, batch, key, *frozen)
        # Row i goes to micro-batch i mod accumulate: each device keeps its own rows, nothing moves between them.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, part):
            index, micro = part
            result = gradient(params, micro, jax.random.fold_in(key, index), *frozen)
            return jax.tree.map(jnp.add, total, result), None

        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts), key, *frozen)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))[0]

    def update(state: TrainState, batch: dict, *frozen: Any) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        batch = augment(batch, augment_key, state.step)
        gradients, sums = summed_gradient(state.params, batch, loss_key, *frozen)
        examples = jnp.maximum(sums["examples"], 1)  # a batch may consist of unreadable images only
        gradients = jax.tree.map(lambda g: g / examples, gradients)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
        norm = global_norm(gradients)
        bad = ~jnp.isfinite(sums["loss"] + norm + optax.tree.norm(updates))
        return TrainState(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            sums=jax.tree.map(jnp.add, state.sums, {**sums, "grad_norm": norm, "steps": jnp.ones(())}),
            first_bad_step=jnp.where(bad & (state.first_bad_step == NEVER), state.step, state.first_bad_step),
        )

    return update


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together; finite wherever it can be, because nothing larger is squared than 1.

    The gradient of LaPE with `sincos_2d` needs it at initialisation: the class row of the table is zero, each PE
    LayerNorm multiplies the gradient of that row by 1/sqrt(eps) = 1000, and after twelve of them 1e29 squared would
    overflow. (Adam divides such a gradient by an infinite second moment: the bias never moves.)
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * optax.tree.norm(jax.tree.map(lambda leaf: leaf / scale, tree))
