"""Training images as the model sees them, and what their labels are: for the report."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax.augment import augmentation
from lape_jax.augment.canvas import on_canvas
from lape_jax.data import canvas, order
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.parallel import sharding
from lape_jax.tasks.classify.inputs import host_crop
from lape_jax.tasks.task import SHEET


def augmented(config: ConfigDict, model: Any, source: Source, mixing: bool) -> tuple[np.ndarray, list[str]]:
    """Training images as the model sees them at step 0, but for the normalisation, and what their labels are."""
    images, sizes, labels = [], [], []
    whole = on_canvas(config.data)
    count = min(SHEET, len(source))
    for position, index in enumerate(order.batch_indices(config.seed, 0, count, len(source))):
        example = source[int(index)]
        rng = order.augment_rng(config.seed, 0, position)
        with contextlib.suppress(CorruptImage):  # training has said so
            if whole:
                images.append(canvas.whole(example.image, config.data.side))
                sizes.append(example.image.shape[:2])
            else:
                images.append(host_crop(config)(example, rng))
            labels.append(example.label)
    batch = {
        "image": jnp.asarray(np.stack(images)),
        "label": jnp.asarray(labels, jnp.int32),
        "mask": jnp.ones(len(labels)),
    }
    batch |= {"size": jnp.asarray(sizes, jnp.int32)} if whole else {}
    mesh = sharding.data_mesh(jax.local_devices()[:1])
    augment = augmentation.make(config, num_classes=model.num_classes, mesh=mesh)
    seen = jax.jit(lambda batch, key: augment(batch, key, mixing))(batch, jax.random.key(config.seed))
    images = np.asarray(seen["image"]) * np.asarray(config.data.std) + np.asarray(config.data.mean)
    least = 2 * config.loss.label_smoothing / model.num_classes + 1e-3
    return images, [_label(target, source.classes, least) for target in np.asarray(seen["target"])]


def _label(target: np.ndarray, classes: tuple[str, ...], least: float) -> str:
    """The class, or the two that were mixed."""
    second, first = np.argsort(target, kind="stable")[-2:]
    if target[second] < least:
        return classes[first][:16]
    return f"{target[first]:.2f} {classes[first][:8]} + {target[second]:.2f} {classes[second][:8]}"
