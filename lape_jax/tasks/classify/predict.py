"""The most probable classes of a user's own images."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from lape_jax.augment.photometric import normalise
from lape_jax.data import decode
from lape_jax.parallel import sharding
from lape_jax.parallel.arrays import place
from lape_jax.port import files
from lape_jax.tasks.images import TOP, Found, named, pixels, readable
from lape_jax.tasks.task import Candidate


def predict(run: Candidate, images: Found, out: Path) -> int:
    """Prints and writes the most probable classes of each image that can be read; returns how many can."""
    data, classes = run.config.data, run.classes

    def square(image: Path) -> np.ndarray:
        return decode.eval_crop(pixels(image, data.channels), data.image_size, data.crop_ratio)

    lines = []
    squares = readable(list(images), square, data.threads)
    for image, probabilities in _probabilities(run, squares, len(images)):
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        top = [{"class": classes[i], "number": int(i), "probability": float(probabilities[i])} for i in best]
        lines.append({"image": str(image), "top": top})
        print(f"{image}: {named((classes[i], probabilities[i]) for i in best)}")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    ranks = range(1, min(TOP, len(classes)) + 1)
    writer.writerow(("image", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))))
    for line in lines:
        cells = ((one["class"], f"{one['probability']:.6f}") for one in line["top"])
        writer.writerow((line["image"], *(cell for pair in cells for cell in pair)))
    objects = "".join(json.dumps(line) + "\n" for line in lines)
    files.write_all(out, {"predictions.csv": table.getvalue().encode(), "predictions.jsonl": objects.encode()})
    return len(lines)


def _probabilities(
    run: Candidate, squares: Iterator[tuple[Path, np.ndarray]], count: int
) -> Iterator[tuple[Path, np.ndarray]]:
    """Image and softmax(logits), in batches of one size; `count` is of the images at most."""
    config, model, variables, _ = run
    mesh = sharding.make_mesh(config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = math.ceil(min(config.eval_batch_size, count) / shards) * shards
    rows, everywhere = sharding.batch_sharding(mesh, size), sharding.replicated(mesh)
    variables = jax.device_put(variables, everywhere)

    def probabilities(variables: dict, images: jax.Array) -> jax.Array:
        images = normalise(images, config.data.mean, config.data.std)
        return jax.nn.softmax(model.apply(variables, images, train=False)[0])

    step = jax.jit(probabilities, out_shardings=everywhere)
    names, batch = [], np.zeros((size, *model.input_shape), np.uint8)
    for image, square in squares:
        batch[len(names)] = square
        names.append(image)
        if len(names) == size:
            yield from zip(names, np.asarray(step(variables, place(batch, rows))), strict=True)
            names, batch = [], np.zeros_like(batch)
    if names:
        yield from zip(names, np.asarray(step(variables, place(batch, rows))), strict=False)
