"""What a model that is not trained any more makes of data: features of its layers, which are kept in a file."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax import tasks
from lape_jax.analysis import features, position_probe
from lape_jax.augment.photometric import normalise
from lape_jax.errors import UserError
from lape_jax.port.archive import reading
from lape_jax.port.files import write_all
from lape_jax.port.sizes import at_size
from lape_jax.tasks import config as configs
from lape_jax.tasks.task import Candidate, Spread

SPLITS = ("train", "val")


class Seen(NamedTuple):
    """What was seen of the images of one split.

    Attributes:
        features: by place, see `lape_jax.analysis.features.of_images`.
        classes: the class of each image.
        products: by layer, see `lape_jax.analysis.position_probe.products`.
    """

    features: dict[str, np.ndarray]
    classes: np.ndarray
    products: list[np.ndarray]


def sized(run: Candidate) -> Candidate:
    """`run` with its model for images as its data have them.

    Raises:
        UserError: it has no tokens, or its tables cannot be interpolated; or the config is not valid.
    """
    configs.validate(run.config)
    features.check_tokens(run.model)
    size = run.config.data.image_size
    if (size, size) == run.model.input_shape[:2]:
        return run
    model, variables = at_size(run.model, run.variables, size)
    return run._replace(model=model, variables=variables)


def see(run: Candidate, count: int, out: Path) -> tuple[Seen, Seen]:
    """What `run` makes of `count` training images, and of as many to validate: all of them, if it is 0.

    It is kept in the directory `out`, and taken from there if model, weights and data are the same.

    Raises:
        UserError: there are no such data, or they have no classes; or `out` cannot be written to.
    """
    config, task = run.config, tasks.of(run.config)
    sources = {split: task.open_split(config, split) for split in SPLITS}
    sources = {split: Spread(source, count or len(source)) for split, source in sources.items()}
    told = {"data": config.data.to_dict(), "sizes": {name: len(source) for name, source in sources.items()}}
    path = out / f"features-{features.fingerprint(run.model, run.variables, told)}.npz"
    if not path.exists():
        arrays: dict[str, np.ndarray] = {}
        for split, source in sources.items():
            vectors, classes = features.collect(run.model, run.variables, _examples(run, source))
            layers = position_probe.products(run.model, run.variables, (images for images, _ in _examples(run, source)))
            arrays |= {f"{split}/features/{name}": x for name, x in vectors.items()} | {f"{split}/classes": classes}
            arrays |= {f"{split}/products/{layer}": x for layer, x in enumerate(layers)}
        file = io.BytesIO()
        np.savez(file, **arrays)
        write_all(out, {path.name: file.getvalue()})
    with reading(path, ".npz"), np.load(path) as file:
        arrays = dict(file)
    train, val = (_seen(arrays, split) for split in SPLITS)
    return train, val


def _seen(arrays: dict[str, np.ndarray], split: str) -> Seen:
    start = f"{split}/features/"
    vectors = {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}
    layers = sum(name.startswith(f"{split}/products/") for name in arrays)
    return Seen(vectors, arrays[f"{split}/classes"], [arrays[f"{split}/products/{i}"] for i in range(layers)])


def _examples(run: Candidate, source: Any) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Normalised images and their classes, in batches."""
    data = run.config.data
    for images, classes in tasks.of(run.config).examples(run.config, source):
        if (classes < 0).any():
            raise UserError("the data have images without a class, which a probe cannot learn from")
        yield normalise(jnp.asarray(images), data.mean, data.std), classes
