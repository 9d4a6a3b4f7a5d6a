"""A third task, defined here and nowhere in lape_jax: which of four rotations an image has."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax import cli, tasks
from lape_jax import main as command
from lape_jax.augment.photometric import normalise
from lape_jax.data import batches, decode, order, sources
from lape_jax.tasks.task import SHEET, Task


class Turned:
    """The digits, without their labels: what is to be learned are quarter turns, "0" to "3"."""

    classes = ("0", "1", "2", "3")

    def __init__(self, split):
        self.digits = sources.digits(split)

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, index):
        return self.digits[index]


class Rotate(Task):
    name, sources, score = "rotate", {"digits": ""}, ("val/turns", "turns")
    panels = {"turns, %": {"val/turns": "validation"}}  # noqa: RUF012

    def add_keys(self, config):
        config.rotate = type(config)({"turns": 4})

    def open_split(self, config, split):
        return Turned(split)

    def training_batches(self, config, source, start, total, share=order.ALL):
        def read(example, rng):
            turns = int(rng.integers(config.rotate.turns))
            return np.rot90(decode.decode(example.image, 1, example.name), turns), turns

        size = config.data.image_size
        reading = batches.Reading.of(config, start, total, share)
        return batches.shuffled_batches(source, read, (size, size, 1), reading)

    def augmentation(self, config, model, mesh):
        return lambda batch, key, mixing: batch | {"image": normalise(batch["image"], (0.5,), (0.5,))}

    def loss(self, config, model, teacher=None):
        def loss(params, collections, batch, key):
            logits, _ = model.apply({"params": params, **collections}, batch["image"], train=False)
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)[:, 0]
            total = jnp.sum(losses * batch["mask"])
            return total, ({"loss": total, "examples": batch["mask"].sum()}, collections)

        return loss

    def evaluator(self, config, model, mesh, source):
        images = np.stack([np.rot90(source.digits.images, turns, (1, 2)) for turns in range(4)])
        predict = jax.jit(lambda variables, x: jnp.argmax(model.apply(variables, x, train=False)[0], axis=1))

        def evaluate(variables, prefix="val/"):
            found = [predict(variables, normalise(jnp.asarray(x), (0.5,), (0.5,))) == i for i, x in enumerate(images)]
            return {f"{prefix}turns": 100 * float(np.mean(found))}

        return evaluate

    def sheet(self, config, model, source, mixing):
        chosen = order.batch_indices(config.seed, 0, SHEET, len(source))
        return source.digits.images[chosen].repeat(3, axis=-1) / 255, [f"digit {i}" for i in chosen]


tasks.TASKS["rotate"] = Rotate()
if __name__ == "__main__":
    sys.exit(cli.run(command.main, required=("config", "workdir")))
