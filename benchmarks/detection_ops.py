"""Forms of what detection is made of, beside one another: regions' features, suppression, and the best of many.

    python benchmarks/detection_ops.py [--parts roi nms classes topk] [--images=1] [--size=1024] [--repeats=3] [--tpu]

Each row is of images of --size x --size pixels, with the numbers of boxes of Mask R-CNN: 1000 regions of 7 x 7 bins or
100 of 14 x 14 in evaluation, 512 and 128 in training (with the gradient), 2000 or 1000 candidates of a map, 80 classes.
Boxes are of all sizes, alike in no way to those of a trained model but in that many overlap. Without --tpu the programs
run here, and milliseconds are the least of --repeats, float32. With --tpu, nothing is run: they are compiled for one
TPU v5e chip by libtpu (pip install "jax[tpu]"), maps in bfloat16, and what is written is the temporary memory, the
traffic, and the milliseconds that the compiler's estimates of cycles come to; loops whose turns are not known count
once.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
CHANNELS, CLASSES, THRESHOLD = 256, 80, 0.7


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["roi", "nms", "classes", "topk"])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tpu", action="store_true")
    args = parser.parse_args()
    if args.tpu:
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    columns = ["MB temporary", "MB traffic", "ms"] if args.tpu else ["ms"]
    print(f"| {args.size} x {args.size} pixels, {args.images} images | form | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for part in args.parts:
        for label, name, function, given in PARTS[part](args):
            cells = (compiled if args.tpu else functools.partial(timed, repeats=args.repeats))(function, given)
            print(f"| {label} | {name} | {' | '.join(cells)} |", flush=True)


def timed(function, given, repeats):
    """Milliseconds, of the program compiled for this machine."""
    import jax

    run, seconds = jax.jit(function), []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(run(*given))
        seconds.append(time.perf_counter() - begin)
    return [f"{1e3 * min(seconds[1:]):.1f}"]


def compiled(function, given):
    """What the program for a TPU v5e needs, by its text."""
    import hlo
    import jax
    import numpy as np
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1))
    place = jax.NamedSharding(jax.sharding.Mesh(np.array(topology.devices), ("d",)), jax.P())
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), given)
    program = jax.jit(function).lower(*given).compile()
    found, used = hlo.analyse(program.as_text()), program.memory_analysis()
    return [f"{used.temp_size_in_bytes / 1e6:.0f}", f"{found.hbm_bytes / 1e6:.0f}", f"{found.cycles / 1.5e6:.2f}"]


def boxes(args, *shape):
    """Of sides from 4 to 400 pixels, elongated by up to 4, cut at the borders."""
    import numpy as np

    rng = np.random.default_rng(0)
    centre, size = args.size * rng.random((*shape, 2)), 4 * 100 ** rng.random((*shape, 1))
    ratio = 2 ** rng.uniform(-1, 1, (*shape, 1))
    half = size * np.concatenate([ratio, 1 / ratio], axis=-1) / 2
    return np.clip(np.concatenate([centre - half, centre + half], axis=-1), 0, args.size).astype(np.float32)


# ---- Features of regions


def regions(args):
    import jax
    import jax.numpy as jnp

    from lape_jax.nn.detection import roi_gathers
    from lape_jax.nn.detection.anchors import STRIDES
    from lape_jax.nn.detection.roi_align import by_products

    kind, strides = jnp.bfloat16 if args.tpu else jnp.float32, STRIDES[:4]
    maps = [jnp.ones((args.images, args.size // s, args.size // s, CHANNELS), kind) for s in strides]

    def of_products(maps, rois, g):
        return jax.vjp(lambda maps: by_products(maps, rois, strides, g.shape[2]), maps)[1](g)

    for count, out, train in ((1000, 7, False), (100, 14, False), (512, 7, True), (128, 14, True)):
        given = maps, jnp.asarray(boxes(args, args.images, count))
        if train:
            given = *given, jnp.ones((args.images, count, out, out, CHANNELS), kind)
            forms = of_products, functools.partial(roi_gathers.gradient, strides=strides)
        else:
            forms = (functools.partial(form, strides=strides, out=out) for form in (by_products, roi_gathers.features))
        label = f"{count} regions, {out} x {out}{': the gradient' if train else ''}"
        for name, form in zip(("products", "gathers"), forms, strict=True):
            yield label, name, form, given


# ---- Suppression


def suppression(args):
    import jax.numpy as jnp

    from lape_jax.nn.detection.nms import suppress

    forms = {"rounds over a matrix": suppress, "rounds, overlaps anew": anew, "one box at a time": one_by_one}
    for count in (1000, 2000):
        given = jnp.asarray(boxes(args, args.images, count)), jnp.ones((args.images, count), bool)
        for name, form in forms.items():
            yield f"{count} candidates", name, functools.partial(form, threshold=THRESHOLD), given


def anew(boxes, valid, threshold):
    """As `suppress`, with nothing kept from one round to the next but what is left."""
    import jax
    import jax.numpy as jnp

    from lape_jax.nn.detection.boxes import iou

    count = boxes.shape[-2]
    better = jnp.arange(count) < jnp.arange(count)[:, None]

    def again(state):
        kept, _ = state
        # That the boxes depend on what is left keeps the overlaps in the loop.
        seen = jnp.where(kept[..., None] | True, boxes, 0)
        over = (iou(boxes, seen, floor=0.0) > threshold) & better & kept[..., None, :]
        left = valid & ~jnp.any(over, axis=-1)
        return left, jnp.any(left != kept)

    return jax.lax.while_loop(lambda state: state[1], again, (valid, jnp.asarray(True)))[0]


def one_by_one(boxes, valid, threshold):
    """The definition: a loop over boxes, each of which suppresses those behind it."""
    import jax
    import jax.numpy as jnp

    from lape_jax.nn.detection.boxes import iou

    count = boxes.shape[-2]

    def of_box(i, kept):
        box = jax.lax.dynamic_slice_in_dim(boxes, i, 1, axis=-2)
        over = (iou(boxes, box, floor=0.0)[..., 0] > threshold) & (jnp.arange(count) > i)
        return kept & ~(over & jax.lax.dynamic_slice_in_dim(kept, i, 1, axis=-1))

    return jax.lax.fori_loop(0, count, of_box, valid)


# ---- The best of all classes


def classes(args):
    import jax.numpy as jnp
    import numpy as np

    from lape_jax.nn.detection.nms import best_of_classes

    rng = np.random.default_rng(1)
    moved = boxes(args, args.images, 1000)[:, :, None] + rng.normal(0, 5, (args.images, 1000, CLASSES, 4))
    logits = rng.gumbel(size=(args.images, 1000, CLASSES + 1)) * 2
    scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    given = jnp.asarray(moved, jnp.float32), jnp.asarray(scores[..., :-1], jnp.float32)
    options = {"threshold": 0.5, "at_least": 0.05, "count": 100}
    for name, form in {"the best, 100 times": best_of_classes, "class by class": class_by_class}.items():
        yield f"1000 regions, {CLASSES} classes", name, functools.partial(form, **options), given


def class_by_class(boxes, scores, threshold, at_least, count):
    """Each class sorted and suppressed by itself, and the best of what is left; the classes one after the other."""
    import jax
    import jax.numpy as jnp

    from lape_jax.nn.detection.nms import suppress

    def of_class(given):
        boxes, scores = given
        score, order = jax.lax.top_k(jnp.where(scores > at_least, scores, -jnp.inf), scores.shape[1])
        kept = suppress(jnp.take_along_axis(boxes, order[..., None], axis=1), score > -jnp.inf, threshold)
        return jnp.where(kept, score, -jnp.inf), order

    score, order = jax.lax.map(of_class, (jnp.moveaxis(boxes, 2, 0), jnp.moveaxis(scores, 2, 0)))
    regions = scores.shape[1]
    best, place = jax.lax.top_k(jnp.moveaxis(score, 0, 1).reshape(len(scores), -1), count)
    region = jnp.take_along_axis(jnp.moveaxis(order, 0, 1).reshape(len(scores), -1), place, axis=1)
    return region, place // regions, best


# ---- The best of a map


def highest(args):
    import jax
    import jax.numpy as jnp
    import numpy as np

    total = 3 * (args.size // 4) ** 2
    scores = jnp.asarray(np.random.default_rng(0).random((args.images, total)), jnp.float32)
    forms = {
        "top_k": lambda x, k: jax.lax.top_k(x, k),
        "sort": lambda x, k: [y[:, :k] for y in sorted_places(x)],
        "approx_max_k, recall 1": lambda x, k: jax.lax.approx_max_k(x, k, recall_target=1.0),
    }
    for k in (1000, 2000):
        for name, form in forms.items():
            yield f"{k} of {total}", name, functools.partial(form, k=k), (scores,)


def sorted_places(x):
    import jax
    import jax.numpy as jnp

    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    values, places = jax.lax.sort((-x, places), dimension=1, num_keys=1, is_stable=True)
    return -values, places


PARTS = {"roi": regions, "nms": suppression, "classes": classes, "topk": highest}

if __name__ == "__main__":
    main()
