"""Random erasing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lape_jax.augment.crop import DRAWS, random_box

AREA = (0.02, 1 / 3)  # of the box, as a fraction of the image's
RATIO = (0.3, 1 / 0.3)


def random_erase(images: Float[Array, "b h w c"], keys: jax.Array, prob: float) -> Float[Array, "b h w c"]:
    """Fills a random box of an image, with probability `prob`, with N(0, 1) noise for each pixel and channel.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as in timm's pixel mode: the box's area is uniform in
    `AREA` and its aspect ratio log-uniform in `RATIO`; it is smaller than the image on both sides, and uniformly
    placed; an image for which ten draws give no such box stays whole.

    Args:
      images: normalised images.
      keys: (b,) typed PRNG keys, one per image.
      prob: in [0, 1].
    """
    height, width = images.shape[1:3]

    def erase(image, key):
        draw_key, noise_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (DRAWS + 1, 2))
        box, fits = random_box(draws[:-1], height, width, AREA, RATIO, margin=1)
        rows, columns = jnp.arange(height) - box.top, jnp.arange(width) - box.left
        inside = ((rows >= 0) & (rows < box.height))[:, None] & ((columns >= 0) & (columns < box.width))

        def erased():
            return jnp.where(inside[:, :, None], jax.random.normal(noise_key, image.shape, image.dtype), image)

        return jax.lax.cond(fits & (draws[-1, 0] < prob), erased, lambda: image)

    # One image after the other, a CPU makes noise only where it is wanted, which is most of the cost.
    return jax.lax.platform_dependent(
        images, keys, cpu=lambda *rows: jax.lax.map(lambda row: erase(*row), rows), default=jax.vmap(erase)
    )
