"""How fast a host makes batches of a pack and of JPEG files, on one core, from the page cache: benchmarks/packed.md.

    python benchmarks/packed.py [--data=DIR] [--images=500] [--side=256] [--repeats=5] [--batch=256] [--out=FILE.md]

DIR holds class directories of JPEG files; without it, files of 500x375 pixels are made from the two photos that come
with scikit-learn. They are packed into a temporary directory. Both ways are those of a training run: Grain's threads
(here one) and the same order; JPEG files become random-resized crops of 224 pixels, packed images canvases. A turn
makes as many images as there are, and of packed ones twenty times as many; numbers are medians over the turns.

Images per second of CPU time are what a core gives, also on a busy machine. What `floor` says is one read of the same
bytes, image by image in the same order, into memory that is warm: what no reader of these files can do without.
"""

import argparse
import io
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from decode import read, synthesise
from PIL import Image

from lape_jax.data import canvas, packed, pipeline
from lape_jax.data.batches import Reading
from lape_jax.data.example import Example
from lape_jax.data.offline import pack, parts
from lape_jax.data.order import Order

CROP = pipeline.Crop(224, 3, (0.08, 1.0), (3 / 4, 4 / 3))
GOAL, CORES = 17_000, (2, 16)  # images/s of a fast accelerator on DeiT-Ti, and cores of a host


class Files:
    """JPEG files in memory."""

    classes = ("image",)

    def __init__(self, jpegs):
        self.jpegs = jpegs

    def __len__(self):
        return len(self.jpegs)

    def __getitem__(self, index):
        return Example(self.jpegs[index], 0, f"file {index}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, default=canvas.SIDE)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    source = Files(read(args.data, args.images) if args.data else synthesise(args.images))
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "pack"
        form = pack.Pack(place, args.side, "stored")
        pack.write(form, {"train": source}, {"origin": "benchmark"}, parts.How(1))
        found = packed.open_packed(str(place), "train")
        batch = min(args.batch, len(source))
        ways = {"JPEG": jpeg_way(source, batch), "packed": packed_way(found, batch), "floor": floor_way(found, batch)}
        for way in ways.values():
            way()  # puts files into the page cache
        turns = {name: [] for name in ways}
        for turn in range(args.repeats):
            for name in list(ways)[:: -1 if turn % 2 else 1]:
                turns[name].append(ways[name]())
        text = report(source, found, turns, batch, args)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


def jpeg_way(source, batch):
    return way(lambda reading: pipeline.train_batches(source, reading, CROP), len(source), batch)


def packed_way(source, batch):
    return way(lambda reading: canvas.train_batches(source, reading), 20 * len(source), batch)


def way(make, images, batch):
    """A turn: (images/s of CPU time, images/s on the clock), from the start of the threads to their end."""
    steps = -(-images // batch)

    def turn():
        cpu, wall = time.process_time(), time.perf_counter()
        with make(Reading(Order(0, batch), range(steps), threads=1)) as batches:
            for _ in batches:
                pass
        return steps * batch / (time.process_time() - cpu), steps * batch / (time.perf_counter() - wall)

    return turn


def floor_way(source, batch):
    """One read for each image."""
    sizes = source.sizes[:, 0].astype(np.int64) * canvas.CHANNELS * source.side
    whole = canvas.CHANNELS * source.side**2
    memory = memoryview(np.zeros(batch * whole, np.uint8))
    (name,) = (file for file in source.files if file.endswith(packed.PIXELS))
    starts = np.cumsum(sizes) - sizes
    chosen = np.random.default_rng(0).permutation(len(source))
    reads = [(int(index % batch) * whole, int(starts[index]), int(sizes[index])) for index in chosen]

    def turn():
        handle = os.open(os.path.join(source.root, name), os.O_RDONLY)
        try:
            cpu, wall = time.process_time(), time.perf_counter()
            for place, start, size in reads:
                os.preadv(handle, (memory[place : place + size],), start)
            return len(reads) / (time.process_time() - cpu), len(reads) / (time.perf_counter() - wall)
        finally:
            os.close(handle)

    return turn


def report(source, found, turns, batch, args):
    cpu, wall = ({name: statistics.median(t[i] for t in each) for name, each in turns.items()} for i in (0, 1))
    sizes = [Image.open(io.BytesIO(data)).size for data in source.jpegs]
    width, height = np.mean(sizes, axis=0)
    disk = {
        "JPEG": np.mean([len(data) for data in source.jpegs]),
        "packed": np.mean(found.sizes[:, 0]) * canvas.CHANNELS * found.side,
    }
    disk["floor"] = disk["packed"]
    ratio = statistics.median(mine[0] / theirs[0] for mine, theirs in zip(turns["packed"], turns["JPEG"], strict=True))
    least, most = (min(cpu_of(turns, "packed")), max(cpu_of(turns, "packed")))
    load = os.getloadavg()[0]
    given = f" --data=DIR --images={args.images}" if args.data else f" --images={args.images}"
    lines = [
        "# Input without JPEG",
        f"By `python benchmarks/packed.py{given} --side={args.side} --batch={args.batch} --repeats={args.repeats}`. "
        f"{len(source)} {'JPEG files' if args.data else 'JPEG files made of two photos'} of {width:.0f} x {height:.0f} "
        f"pixels in the mean, batches of {batch}, one thread, {os.cpu_count()} cores ({platform.machine()}), JAX "
        f"{jax.__version__}; the load of the machine was {load:.1f} at the end"
        + (", so that time on the clock says little." if load > os.cpu_count() else "."),
        "| | images/s of CPU time | images/s on the clock | bytes an image |\n|---|---|---|---|\n"
        + "\n".join(
            f"| {title} | {cpu[name]:,.0f} | {wall[name]:,.0f} | {disk[name]:,.0f} |"
            for name, title in (
                ("JPEG", "JPEG: decoded, cropped, resized"),
                ("packed", f"packed, side {found.side}"),
                ("floor", "one read of the same bytes: the floor"),
            )
        ),
        f"A core makes {ratio:.1f} times as many images of a pack as of JPEG files (median of the turns; packs "
        f"{least:,.0f} to {most:,.0f}), and {100 * cpu['packed'] / cpu['floor']:.0f} % of what reading alone "
        f"allows. A canvas, which is sent to the device, has {canvas.CHANNELS * found.side**2:,} bytes; a crop of 224 "
        f"pixels has {3 * 224**2:,}. tf.data is not measured.",
        "By calculation from these rates of one core, not measured: what part of its time a device that trains "
        f"{GOAL:,} images/s would wait, 1 - min(1, cores x rate / {GOAL:,}), if the cores did nothing else and their "
        "rates added up.",
        "| cores | JPEG | packed |\n|---|---|---|\n"
        + "\n".join(f"| {n} | {waiting(n * cpu['JPEG'])} | {waiting(n * cpu['packed'])} |" for n in CORES),
    ]
    return "\n\n".join(lines)


def cpu_of(turns, name):
    return [turn[0] for turn in turns[name]]


def waiting(rate):
    return f"{100 * (1 - min(1, rate / GOAL)):.0f} %"


if __name__ == "__main__":
    main()
