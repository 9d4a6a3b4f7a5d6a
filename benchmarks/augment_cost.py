"""What augmentation costs on the device beside a train step: time per image, and as a fraction of the step.

    python benchmarks/augment_cost.py [--recipe=imagenet,cifar] [--batch=0] [--size=0] [--repeats=9] [--dtype=float32]

imagenet: flip, RandAugment, erasing, mixup and CutMix, normalisation of streamed 224x224 images, beside a DeiT-Ti step.
cifar: the same and random-resized crops of resident 32x32 images, beside a ViT-Lite-7/4 step. Both programs run in
turns in the same process, so that drift of the machine cancels; the fraction is the median of those of the turns.
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_images

from lape_jax import models
from lape_jax.augment import augmentation
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify import loss as classify
from lape_jax.tasks.config import base
from lape_jax.train import state as states

RECIPES = {  # model, image size, default batch, and what of the config differs from `imagenet`
    "imagenet": ("deit_ti", 224, 16, {}),
    "cifar": ("vit_lite_7_4", 32, 128, {"resident": True, "scale": (0.8, 1.0), "interpolation": "random"}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=",".join(RECIPES))
    parser.add_argument("--batch", type=int, default=0, help="0 = 16 for imagenet, 128 for cifar")
    parser.add_argument("--size", type=int, default=0, help="side of the images; 0 = the recipe's")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.dtype}")
    for name in args.recipe.split(","):
        model_name, size, batch_size, options = RECIPES[name]
        size, batch_size = args.size or size, args.batch or batch_size
        model = models.create(model_name, image_size=size, dtype=jnp.dtype(args.dtype))
        augment = compiled_augmentation(size, batch_size, model.num_classes, options)
        step = train_step(model, augment(0))
        seconds = {"augment": [], "step": []}
        for turn in range(-1, args.repeats):
            for kind, call in (("augment", augment), ("step", step)):
                begin = time.perf_counter()
                jax.block_until_ready(call(turn))
                if turn >= 0:  # the first turn warms up
                    seconds[kind].append(time.perf_counter() - begin)
        fractions = [a / s for a, s in zip(seconds["augment"], seconds["step"], strict=True)]
        low, _, high = statistics.quantiles(fractions, n=4)
        augment_us, step_us = (1e6 * statistics.median(times) / batch_size for times in seconds.values())
        print(
            f"{name}: {size}x{size}, batch {batch_size}: augmentation {augment_us:.1f} us/image = "
            f"{100 * statistics.median(fractions):.1f} % (quartiles {100 * low:.1f} to {100 * high:.1f} %) of the "
            f"{model_name} train step's {step_us:.1f} us/image",
            flush=True,
        )


def compiled_augmentation(size, batch_size, num_classes, options):
    """A call of the compiled recipe: (turn) -> augmented batch."""
    config = base()
    config.data.image_size = size
    config.augment.flip = True
    config.augment.policy = "rand-m9-mstd0.5-inc1"
    config.augment.erase_prob, config.augment.mixup, config.augment.cutmix = 0.25, 0.8, 1.0
    config.loss.label_smoothing = 0.1
    for key, value in options.items():
        config.data[key] = value
    print(f"{augmentation.describe(config)}")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    program = jax.jit(augmentation.make(config, num_classes=num_classes, mesh=mesh))
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": photographs(rng, batch_size, size),
            "label": rng.integers(0, num_classes, batch_size).astype(np.int32),
            "mask": np.ones(batch_size, np.float32),
        }
    )
    return lambda turn: program(batch, jax.random.key(turn), True)


def photographs(rng, count, size):
    """Pieces of the two photographs that scikit-learn ships: the cost of some operations depends on the pixels."""
    images = np.empty((count, size, size, 3), np.uint8)
    for image, picture in zip(images, itertools.cycle(load_sample_images().images), strict=False):
        top, left = (rng.integers(0, side - size) for side in picture.shape[:2])
        image[:] = picture[top : top + size, left : left + size]
    return images


def train_step(model, batch):
    """A call of the compiled update, as training runs it, always on the same augmented batch."""
    tx = optax.adamw(1e-3)
    loss, as_it_is = classify.training_loss(model), lambda batch, key, step: batch
    update = states.update_function(loss, tx, as_it_is, seed=0, accumulate=1, ema_decay=0)
    state = jax.jit(states.initialiser(model, tx, ema=False, task=TASKS["classify"]))(jax.random.key(0))
    program = jax.jit(update, donate_argnums=0)

    def call(turn):
        nonlocal state
        state = program(state, batch)
        return state

    return call


if __name__ == "__main__":
    main()
