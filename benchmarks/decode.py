"""How fast JPEG files become training crops, and how exact they are: ours, Pillow's and TensorFlow's, on one core.

    python benchmarks/decode.py [--data=DIR] [--images=200] [--repeats=9] [--size=224]

DIR holds class directories of JPEG files; without it, 200 files of 500x375 pixels are made from the two photos that
come with scikit-learn. All cut the same random boxes (area 8 to 100 %) and give uint8 pixels, in one thread, in turns;
numbers are medians over the turns, after one that does not count. Images per second of CPU time are what a core gives;
on a busy machine the time on the clock says less.

TensorFlow (`pip install tensorflow-cpu`) is measured if it can be imported: `decode_and_crop_jpeg` and `resize`, in a
`tf.data` pipeline of batches with one thread, and as a `tf.function` that is called for each image, as ours is.

The error is the mean absolute difference, in grey levels of 255, from Pillow's decode, crop and antialiased resize.
"""

import argparse
import importlib.util
import io
import os
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lape_jax.data import decode, jpeg, order, resample
from lape_jax.data.boxes import align, random_box

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    files = read(args.data, args.images) if args.data else synthesise(args.images)
    boxes = [box_of(i, data, args.size) for i, data in enumerate(files)]
    sides = np.array([(box.height * box.width) ** 0.5 for box in boxes])
    print(
        f"{len(files)} JPEGs of {np.mean([len(data) for data in files]) / 1024:.0f} kB on average, boxes of "
        f"{sides.mean():.0f} pixels on average -> {args.size}x{args.size}"
    )
    calls = {f"ours, {kind}": ours(files, args.size, kind) for kind in ("bicubic", "bilinear")}
    calls |= {f"Pillow, {kind}": pillow(files, args.size, kind) for kind in ("bicubic", "bilinear")}
    if importlib.util.find_spec("tensorflow"):
        calls |= tensorflow(files, boxes, args.size)
    else:
        print("TensorFlow is not installed (pip install tensorflow-cpu), so there is nothing to compare with")
    exact = [np.stack(list(calls[f"Pillow, {kind}"]())).astype(np.int16) for kind in ("bicubic", "bilinear")]
    errors = {name: error(call(), exact["bilinear" in name]) for name, call in calls.items()}
    report(time_all(calls, args.repeats), errors, len(files))


def report(seconds, errors, images):
    """One line for each: speed, error, and how much faster `ours, bicubic` is in the same turn."""
    print(f"{'':36}{'images/s of CPU':>16}{'on the clock':>14}{'ours is':>10}   error: mean, worst image")
    for name, turns in seconds.items():
        cpu, wall = (images / statistics.median(times) for times in zip(*turns, strict=True))
        ratio = statistics.median(
            other[0] / mine[0] for other, mine in zip(turns, seconds["ours, bicubic"], strict=True)
        )
        mean, worst = errors[name]
        print(f"{name:36}{cpu:16,.0f}{wall:14,.0f}{ratio:9.2f}x   {mean:.2f}, {worst:.2f}", flush=True)


def time_all(calls, repeats):
    """Name -> (seconds of CPU, seconds on the clock) of each turn."""
    seconds = {name: [] for name in calls}
    for turn in range(-1, repeats):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in calls[name]():
                pass
            if turn >= 0:
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return seconds


def error(images, exact):
    """(mean, worst) over the images of the mean absolute difference."""
    each = np.abs(np.stack([np.asarray(image) for image in images]).astype(np.int16) - exact).mean((1, 2, 3))
    return each.mean(), each.max()


def rng_of(i):
    return order.augment_rng(0, 0, i)


def box_of(i, data, size):
    """The box that `decode.train_image` draws."""
    header = jpeg.read_header(data)
    box = random_box(header.height, header.width, rng_of(i), SCALE, RATIO)
    return align(box, jpeg.reduction(box, size), header.height, header.width)


def ours(files, size, kind):
    def run():
        for i, data in enumerate(files):
            options = {"size": size, "rng": rng_of(i), "scale": SCALE, "ratio": RATIO, "interpolation": kind}
            yield decode.train_image(data, 3, "", **options)

    return run


def pillow(files, size, kind):
    def run():
        for i, data in enumerate(files):
            box = box_of(i, data, size)
            pixels = decode.decode(data, 3, "")[box.top : box.bottom, box.left : box.right]
            yield resample.resize(pixels, size, size, kind)

    return run


def tensorflow(files, boxes, size):
    """The peers, by name: each a call that yields the images."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    inputs = tf.data.Dataset.from_tensor_slices((files, np.array(boxes, np.int32)))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False

    def crop_function(method, antialias):
        def crop(data, box):
            image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
            image = tf.image.resize(image, (size, size), method=method, antialias=antialias)
            return tf.saturate_cast(image + 0.5, tf.uint8)

        return crop

    def pipeline(crop):
        batches = inputs.map(crop).batch(len(files) // 10 or 1).with_options(options)

        def run():
            for batch in batches:
                yield from batch.numpy()

        return run

    def calls(crop):
        function = tf.function(crop, input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)])
        arguments = list(inputs)

        def run():
            for data, box in arguments:
                yield function(data, box).numpy()

        return run

    kinds = [(method, antialias) for antialias in (False, True) for method in ("bilinear", "bicubic")]
    functions = {
        f"{method}{', antialias' * antialias}": crop_function(method, antialias) for method, antialias in kinds
    }
    peers = {f"TensorFlow, {name}": pipeline(crop) for name, crop in functions.items()}
    return peers | {f"TensorFlow by calls, {name}": calls(functions[name]) for name in ("bilinear", "bicubic")}


def read(directory, count):
    """Up to `count` colour JPEGs from the directories below `directory`, spread over all of them."""
    paths = sorted(path for path in Path(directory).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]
    return [data for data in files if jpeg.read_header(data)]


def synthesise(count):
    """Parts of two photos, 500x375 pixels, at quality 90."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640x427
    files = []
    for i in range(count):
        left, top = int(rng.integers(0, 141)), int(rng.integers(0, 53))
        file = io.BytesIO()
        photos[i % 2].crop((left, top, left + 500, top + 375)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


if __name__ == "__main__":
    main()
