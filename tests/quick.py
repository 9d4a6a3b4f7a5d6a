"""What keeps tests quick: cheap compilation, and cases that wait for `-m slow`."""

import functools
from collections.abc import Collection, Iterable

import jax
import pytest

# For programs so small that compiling them is the cost, and optimising them does not pay. Measured on gradients of a
# three-block encoder: a third of the time that XLA takes by default, and with the last option, which newer versions of
# XLA do not have, an eighth.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):
    COMPILER_OPTIONS["xla_cpu_use_fusion_emitters"] = False

FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in COMPILER_OPTIONS.items())
jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)


def cases(every: Iterable, first: Collection[str]) -> pytest.MarkDecorator:
    """Parametrizes `case` with all of them, by name; those that are not among the `first` are left to `-m slow`."""
    every = list(every)
    assert set(first) <= {case.name for case in every}
    slow = [() if case.name in first else pytest.mark.slow for case in every]
    params = [pytest.param(case, id=case.name, marks=marks) for case, marks in zip(every, slow, strict=True)]
    return pytest.mark.parametrize("case", params)


def first(count: int, values: Iterable) -> list:
    """Parameters of a test (tuples are several), all but the first `count` left to `-m slow`."""
    several = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*value, marks=() if index < count else pytest.mark.slow) for index, value in enumerate(several)
    ]
