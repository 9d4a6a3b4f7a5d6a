"""What LaPE costs beside the default joining, as the paper's Tables 5 and 6 ask: `python -m lape_jax.overhead`.

parameters    learned and frozen ones (sinusoids, random features), as papers count them; running statistics are none
FLOPs         of one image, all of a program's arithmetic: XLA's count before it optimises, a multiply-add being two.
              Layers are unrolled for it, because XLA counts the body of a loop once, however often the loop turns.
memory        of one device: arguments, results in memory of their own, and temporaries, as the compiler plans them
time          of a call. The programs are called in turns, so that what changes on the machine meets all of them; a copy
              of the default's program is among them: what it takes by the default's time is what noise can do.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.nn.join import BASELINE, JOINS

TRAINING = "train step"


class Candidate(NamedTuple):
    """A model whose cost is measured."""

    joining: str
    model: nn.Module
    variables: dict


class Task(NamedTuple):
    """What a model is to do."""

    function: Callable  # jitted
    shapes: tuple  # of its arguments, with shardings
    call: Callable[[jax.stages.Compiled], Callable[[], Any]]  # of the compiled function, with arguments


class Program(NamedTuple):
    """What one compiled program costs."""

    flops: float  # of one image
    memory: int  # bytes of one device
    compile_seconds: float
    seconds: tuple[float, ...] = ()  # of its call in each turn; () if it did not run
    copy: tuple[float, ...] = ()  # ... and those of a copy of the program, which tell how much of a ratio is noise


class Cost(NamedTuple):
    """What a model with one joining costs."""

    joining: str
    parameters: int
    trained: int | None  # of the parameters; None if the model is for inference alone
    programs: Mapping[str, Program]  # by name


def candidates(name: str, settings: Mapping[str, Any]) -> tuple[list[Candidate], list[str]]:
    """The models to compare, and notes on what they are not measured in.

    They are the one called `name` with the default joining, with LaPE (or the `join` of the settings), and folded for
    inference, if it can be. The last two have the same weights.

    Raises:
        UserError: no such model or setting, or no position embedding that LaPE could deliver.
    """
    family, _ = models.VARIANTS.get(name, (None, {}))
    if family and not hasattr(family, "joining"):
        raise UserError(
            f"model {name!r}: a {family.__name__} has no position embedding, so there is nothing to compare"
        )
    join = settings.get("join")
    if join == BASELINE or (join in JOINS and not JOINS[join].trainable):
        raise UserError(f"join={join!r} is measured in any case: leave it out")
    shared = {key: value for key, value in settings.items() if key not in ("join", "pe_norm")}
    default = models.create(name, **shared, join=BASELINE)
    if not position.parse_pe(default.pe)[0]:
        raise UserError(f"pe={default.pe!r} has no table that LaPE could deliver: add one, such as 'learnable'")
    model = models.create(name, **settings)
    found = [Candidate(one.joining, one, _initial(one)) for one in (default, model)]
    try:
        folded, constants = port.fold(found[1].variables, model)
    except UserError as error:
        return found, [f"folded: {error}"]
    found.append(Candidate(folded.joining, folded, constants))
    return found, ["folded: for inference, its constants are not trained"]


def _initial(model: nn.Module) -> dict:
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))


def measure(
    found: Sequence[Candidate],
    tasks: Mapping[str, Callable[[Candidate, Sequence[Any]], Task]],
    *,
    batch: int,
    devices: Sequence[Any],
    repeats: int,
    say: Callable[[str], Any] = lambda text: None,
) -> list[Cost]:
    """What each of the candidates costs; the first is what the others are compared with.

    Args:
        found: from `candidates`.
        tasks: by name, the function (candidate, devices) -> what it is to do there. The folded model does not take
            part in training, TRAINING by its name.
        batch: images of a call, over all devices.
        devices: to compile for, and to run on.
        repeats: turns in which the programs are called; 0 to do without times.
        say: is told what is being done.

    Raises:
        UserError: JAX has no CPU here.
    """
    try:
        host = jax.devices("cpu")[:1]
    except RuntimeError as error:
        raise UserError(
            f"FLOPs are counted on JAX's CPU: add it to JAX_PLATFORMS={jax.config.jax_platforms}"
        ) from error
    known: list[dict[str, Program]] = [{} for _ in found]
    for name, task in tasks.items():
        some = found[:2] if name == TRAINING else found
        programs, calls = [], []
        for one in (*some, some[0]):  # the last is the copy
            say(f"compiling {name}, {one.joining}")
            own = task(one, devices)
            program, seconds = _compiled(own.function.lower(*own.shapes))
            programs.append(Program(0.0, peak_bytes(program), seconds))
            calls += [own.call(program)] if repeats else []
        times: Sequence[tuple[float, ...]] = [()] * len(programs)
        if repeats:
            say(f"calling {name}, {len(calls)} programs in {repeats} turns")
            times = in_turns(calls, repeats)
        # The first of all compilations sets things up for the others, so that of the copy counts.
        programs[0] = programs[0]._replace(compile_seconds=programs[-1].compile_seconds, copy=times[-1])
        for own, one, program, seconds in zip(known, some, programs, times, strict=False):
            plain = task(one._replace(model=unrolled(one.model)), host)
            counted = flops(plain.function.lower(*plain.shapes)) / batch
            own[name] = program._replace(flops=counted, seconds=seconds)
    counts = [parameters(one.model, one.variables) for one in found]
    return [
        Cost(one.joining, total, learned if TRAINING in programs else None, programs)
        for one, (total, learned), programs in zip(found, counts, known, strict=True)
    ]


def parameters(model: nn.Module, variables: Mapping[str, Any]) -> tuple[int, int]:
    """How many parameters a model has, and how many of them are learned.

    The others are a sinusoidal table, and what the collection "constants" holds.

    Args:
        model: any with a position embedding.
        variables: the variables of `model`, as arrays or shapes.
    """
    learned, frozen = _size(variables["params"]), _size(variables.get("constants", {}))
    absolute, _ = position.parse_pe(model.pe)
    if absolute not in (None, position.LEARNABLE):
        images = jax.ShapeDtypeStruct((1, *model.input_shape), model.dtype)
        frozen += _size(jax.eval_shape(model.apply, variables, images)[1]["pos_embed"])
    return learned + frozen, learned


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def unrolled(model: nn.Module) -> nn.Module:
    """The same function of the same variables with its layers one after another, and attention that any device has."""
    return model.clone(unroll=max(getattr(model, "depths", (model.depth,))), attention="xla")


def flops(lowered: jax.stages.Lowered) -> float:
    """XLA's count of the FLOPs of what was lowered for the CPU, before it optimises.

    exp, tanh and their like are not counted, conversions of types are, and the body of a loop is counted once.
    """
    return lowered.cost_analysis()["flops"]


def _compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    """The program, and the seconds that it took."""
    begin = time.perf_counter()
    program = lowered.compile()
    return program, time.perf_counter() - begin


def peak_bytes(program: jax.stages.Compiled) -> int:
    """Memory of one device that it needs: arguments, results in memory of their own, and temporaries."""
    used = program.memory_analysis()
    both = used.argument_size_in_bytes + used.output_size_in_bytes
    return both - used.alias_size_in_bytes + used.temp_size_in_bytes


def in_turns(
    calls: Sequence[Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """Seconds of each call in each turn, after one turn that does not count; every second turn runs backwards."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats):
        for index in range(len(calls))[:: -1 if turn % 2 else 1]:
            begin = clock()
            calls[index]()
            seconds[index].append(clock() - begin)
    return [tuple(found) for found in seconds]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third of two values or more, those between values interpolated."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(seconds: Sequence[float], default: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of what a program took by what the default took in the same turn."""
    return quartiles([own / other for own, other in zip(seconds, default, strict=True)])
