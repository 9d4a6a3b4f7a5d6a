"""Runs a traced function one operation at a time, so that a hundred small models share a few hundred tiny compilations.

Compiling each of them whole takes four times as long. What runs is the program that `jax.jit` would compile.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

# Operations that only wrap a program, and the name they have for it.
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def run(function, *arguments):
    """function(*arguments), as traced by `jax.jit`."""
    program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(program, jax.tree.leaves(arguments)))


def _evaluate(program, arguments: list) -> list:
    jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, name = [read(variable) for variable in equation.invars], equation.primitive.name
        if name == "scan":
            results = _scan(equation, inputs)
        elif name in INLINED:
            results = _evaluate(equation.params[INLINED[name]], inputs)
        else:
            results = equation.primitive.bind(*inputs, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _scan(equation, inputs: list) -> list:
    body, length = equation.params["jaxpr"], equation.params["length"]
    # Inputs are constants, carry, then arrays that are scanned over: those have one axis more outside than inside the
    # body. So do the outputs that are stacked, which come after the carry. (JAX releases differ in how they say it.)
    sliced = _gains_an_axis(equation.invars, body.in_avals)
    carried = len(equation.outvars) - _gains_an_axis(equation.outvars, body.out_avals)
    first_slice = len(inputs) - sliced
    constants, carry = inputs[: first_slice - carried], inputs[first_slice - carried : first_slice]
    outputs = [[]] * length
    for step in sorted(range(length), reverse=equation.params["reverse"]):
        results = _evaluate(body, [*constants, *carry, *(array[step] for array in inputs[first_slice:])])
        carry, outputs[step] = results[:carried], results[carried:]
    return [*carry, *(jnp.stack(steps) for steps in zip(*outputs, strict=True))]


def _gains_an_axis(outside, inside) -> int:
    return sum(variable.aval.ndim > aval.ndim for variable, aval in zip(outside, inside, strict=True))
