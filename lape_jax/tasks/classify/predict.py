"""The most probable classes of a user's own images."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from lape_jax.augment.photometric import normalise
from lape_jax.data import canvas, decode
from lape_jax.parallel import sharding
from lape_jax.parallel.arrays import place
from lape_jax.port import files
from lape_jax.tasks.images import TOP, Found, named, pixels, readable
from lape_jax.tasks.task import Candidate


def predict(run: Candidate, images: Found, out: Path) -> int:
    """Prints and writes the most probable classes of each image that can be read; returns how many can.

    What was trained on a pack is shown images as they would be packed.

    They are written as they come, so that what ends this early leaves what was done. Of a name that is no text, what
    cannot be written stands there as an escape, in JSON one that gives the name back.
    """
    data, classes = run.config.data, run.classes

    def square(image: Path) -> np.ndarray:
        whole = pixels(image, data.channels, data.orientation)
        whole = canvas.fit(whole, data.side) if data.source == "packed" else whole
        return decode.eval_crop(whole, data.image_size, data.crop_ratio)

    done, ranks = 0, range(1, min(TOP, len(classes)) + 1)
    squares = readable(list(images), square, data.threads)
    with files.growing(out / "predictions.csv") as table, files.growing(out / "predictions.jsonl") as objects:
        write_row = csv.writer(table, lineterminator="\n").writerow
        write_row(("image", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))))
        for image, probabilities in _probabilities(run, squares, len(images)):
            best = np.argsort(-probabilities, kind="stable")[:TOP]
            top = [{"class": classes[i], "number": int(i), "probability": float(probabilities[i])} for i in best]
            objects.write(json.dumps({"image": str(image), "top": top}) + "\n")
            write_row((str(image), *(cell for one in top for cell in (one["class"], f"{one['probability']:.6f}"))))
            print(f"{image}: {named((classes[i], probabilities[i]) for i in best)}")
            done += 1
    return done


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
