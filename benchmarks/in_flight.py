"""How many programs with collective operations may be in flight on virtual CPU devices before they starve each other.

    python benchmarks/in_flight.py AHEAD [--seconds=20] [--devices=8]

Dispatches that many programs before it waits for them, again and again. Up to 32 of them all is well. With 64 and more,
and few cores, the process is soon aborted in JAX 0.10.2 ("Termination timeout for `all reduce ...`": here after 5
seconds, by default after 40); JAX 0.12 went through with 1000. `lape_jax.parallel.sharding.in_turn` says why, and keeps
the project's own loops at one.
"""

import argparse
import os
import time

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ahead", type=int)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--devices", type=int, default=8)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={args.devices} --xla_cpu_collective_call_terminate_timeout_seconds=5"
    )
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((args.devices,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    total = jax.jit(lambda batch: batch.sum(), out_shardings=everywhere)
    batch, programs, start = np.ones((2 * args.devices, 8), np.float32), 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        pending = [total(jax.device_put(batch, rows)) for _ in range(args.ahead)]
        assert {float(found) for found in pending} == {16.0 * args.devices}
        programs += args.ahead
    print(f"JAX {jax.__version__}, {args.ahead} ahead: all of {programs:,} programs ended")


if __name__ == "__main__":
    main()
