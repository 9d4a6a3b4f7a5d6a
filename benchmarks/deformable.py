"""Ways to read between the pixels of maps, as ViT-Adapter's deformable attention does, beside one another.

    python benchmarks/deformable.py [--images=1] [--repeats=5] [--size=512] [--forms gathers products one-hot] [--tpu]

Each row is a map at the size that ViT-Adapter-Ti's injectors or extractors read it from, 6 heads of 32 channels, 4
points for each query, a third of them outside. On this machine: milliseconds of the forward pass, and of the gradient
alone (which makes again what it needs), the least of --repeats, float32. With --tpu, nothing is run: the programs are
compiled for one TPU v5e chip by libtpu (pip install "jax[tpu]"), with bfloat16 maps, and what is written is the
temporary memory, the traffic, and the milliseconds that the compiler's estimates of cycles come to. It has none for
fetches one by one, for sorting, and for adding to scattered places, which the rows of "gathers" are made of.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]


def places(size):
    """(who reads, queries, side of the map)"""
    patches = size // 16
    pyramid = patches**2 * 21 // 4
    maps = ((f"injector, stride {stride}", patches**2, size // stride) for stride in (8, 16, 32))
    return [*maps, ("extractor", pyramid, patches)]


def one_hot(maps, x, y, weights):
    """`by_products`, with a matrix made pixel by pixel instead of from a row's and a column's part."""
    import jax.numpy as jnp

    from lape_jax.nn.by_blocks import by_blocks
    from lape_jax.nn.deformable import MULTIPLIED

    rows, columns, channels = maps.shape[2:]
    row, column = (axis.reshape(-1, 1) for axis in jnp.indices((rows, columns)))

    def share(at, pixel):
        low = jnp.floor(at)[:, :, None]
        part, distance = at[:, :, None] - low, pixel - low
        return jnp.where(distance == 0, 1 - part, jnp.where(distance == 1, part, 0))

    def some(_, x, y, weights, values):
        points = range(weights.shape[2])
        matrix = sum(weights[:, :, p, None] * share(y[:, :, p], row) * share(x[:, :, p], column) for p in points)
        return jnp.einsum("bhsn,bhsc->bhnc", matrix.astype(maps.dtype), values.astype(maps.dtype))

    return by_blocks(
        some, [x, y, weights], [maps.reshape(*maps.shape[:2], -1, channels)], axis=3, into=2, block=MULTIPLIED
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--forms", nargs="+", default=["gathers", "products", "one-hot"])
    parser.add_argument("--tpu", action="store_true")
    args = parser.parse_args()
    if args.tpu:
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    import jax

    from lape_jax.nn.deformable import by_gathers, by_products

    forms = {"gathers": by_gathers, "products": by_products, "one-hot": one_hot}
    columns = ["ms forward", "ms gradient"]
    if args.tpu:
        columns = [f"{what} {way}" for way in ("forward", "gradient") for what in ("MB temporary", "MB traffic", "ms")]
    print(f"| {args.size} x {args.size} pixels, {args.images} images | form | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for label, queries, side in places(args.size):
        for name in args.forms:
            form = forms[name]
            ways = (form, functools.partial(gradient, form))
            measure = compiled if args.tpu else functools.partial(timed, repeats=args.repeats)
            cells = [cell for way, n in zip(ways, (4, 5), strict=True) for cell in measure(way, args, queries, side, n)]
            print(f"| {label}: {queries} queries, {side} x {side} | {name} | {' | '.join(cells)} |", flush=True)
            jax.clear_caches()


def gradient(form, *given):
    """Of the map, the coordinates and the weights."""
    import jax

    *given, g = given
    return jax.vjp(form, *given)[1](g)


def shapes(args, queries, side):
    """Those of the map, x, y, the weights and what is read."""
    points = (args.images, 6, 4, queries)
    return [(args.images, 6, side, side, 32), points, points, points, (args.images, 6, queries, 32)]


def timed(way, args, queries, side, number, repeats):
    """Milliseconds, of the program compiled for this machine."""
    import jax

    maps, x, y, weights, g = (
        jax.random.uniform(jax.random.key(i), shape) for i, shape in enumerate(shapes(args, queries, side))
    )
    spread = 1.2 * side  # from -0.1 to 1.1 sides: 0.83^2 of the points are inside
    given = [maps, spread * x - 0.1 * side, spread * y - 0.1 * side, weights, g][:number]
    run, seconds = jax.jit(way), []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(run(*given))
        seconds.append(time.perf_counter() - begin)
    return [f"{1e3 * min(seconds[1:]):.1f}"]


def compiled(way, args, queries, side, number):
    """What the program for a TPU v5e needs, by its text."""
    import hlo
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1))
    place = jax.NamedSharding(jax.sharding.Mesh(np.array(topology.devices), ("d",)), jax.P())
    kinds = (jnp.bfloat16, jnp.float32, jnp.float32, jnp.float32, jnp.float32)
    given = [
        jax.ShapeDtypeStruct(shape, kind, sharding=place)
        for shape, kind in zip(shapes(args, queries, side), kinds, strict=True)
    ]
    program = jax.jit(way).lower(*given[:number]).compile()
    found, used = hlo.analyse(program.as_text()), program.memory_analysis()
    return [f"{used.temp_size_in_bytes / 1e6:.0f}", f"{found.hbm_bytes / 1e6:.0f}", f"{found.cycles / 1.5e6:.2f}"]


if __name__ == "__main__":
    main()
