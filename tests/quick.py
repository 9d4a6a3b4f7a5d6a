"""`jit` for tests: programs so small that compiling them is the cost, and optimising them does not pay."""

import functools

import jax

# Measured on gradients of a three-block encoder: a third of the time that XLA takes by default, and with the second
# group, which newer versions of XLA do not have, an eighth.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):
    COMPILER_OPTIONS["xla_cpu_use_fusion_emitters"] = False

jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
