"""Does a layer's token tell where its patch lies? Row and column, read off the tokens by a linear function.

The function t = W x + b of a patch token x is fitted to rows and columns by least squares, with an L2 of `L2` times the
mean variance of the channels, over the patches of all training images; what it is worth is measured on other images:

    r2       1 - sum |t - (row, column)|^2 / sum |(row, column) - their mean|^2: 1 is perfect, 0 is chance
    error    root of the mean squared distance between the place and what is read, in patches

Both come from sums of products of (x, 1, row, column), so that no token has to be kept. Layer 0 is what enters the
first block.
"""

import csv
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lape_jax.analysis import plots
from lape_jax.analysis.features import check_tokens, layer_tokens
from lape_jax.errors import UserError
from lape_jax.models.swin import Swin

if TYPE_CHECKING:
    import matplotlib.figure

L2 = 1e-4
R2, ERROR = "r2", "error"
SHOWN = {R2: "Place of a patch, read off its token (R2)", ERROR: "Distance to it (patches)"}
Products = list[np.ndarray]  # by layer, (d + 3, d + 3)


class Place(NamedTuple):
    """What the tokens of one layer tell."""

    r2: float
    error: float


def products(model: nn.Module, variables: Mapping[str, Any], images: Iterable[jax.Array]) -> Products:
    """Sums z z^T over patches and images, for each layer from 0, with z = (x, 1, row, column).

    Args:
        images: batches, normalised.

    Raises:
        UserError: the model has no tokens, or there are no images.
    """
    check_tokens(model)
    step = jax.jit(functools.partial(_products, model))
    total: Products = []
    for batch in images:
        found = [np.asarray(x, np.float64) for x in jax.device_get(step(variables, batch))]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    if not total:
        raise UserError("there are no images to probe with")
    return total


def read(train: Products, test: Products) -> list[Place]:
    """Fits a function to `train` for each layer, and measures how well it reads the places in `test`."""
    return [_read(*layer) for layer in zip(train, test, strict=True)]


def figure(models: Mapping[str, Sequence[Place]]) -> "matplotlib.figure.Figure":
    """Both measures by layer, a line for each model."""
    panels = {
        title: {label: (range(len(found)), [getattr(one, name) for one in found]) for label, found in models.items()}
        for name, title in SHOWN.items()
    }
    return plots.curves(panels, "layer (0: what enters the first)", limits={SHOWN[R2]: (-0.05, 1.05)})


def table(models: Mapping[str, Sequence[Place]]) -> str:
    """CSV, a line for each model and layer."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "layer", R2, ERROR])
    for label, found in models.items():
        writer.writerows([label, layer, *one] for layer, one in enumerate(found))
    return file.getvalue()


def text(found: Sequence[Place]) -> str:
    """A table, a line for each layer."""
    lines = [f"{'layer':>5} {'R2 of place':>12} {'error':>8}"]
    return "\n".join(lines + [f"{layer:5} {one.r2:12.3f} {one.error:8.2f}" for layer, one in enumerate(found)])


def _products(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "b h w c"]
) -> list[Float[Array, "_k _k"]]:
    _, out = model.apply(variables, images, train=False)
    layers = [out["stem"], *layer_tokens(model, out)]
    if isinstance(model, Swin):
        grids = [windows.grid for windows, depth in zip(model.windows, model.depths, strict=True) for _ in range(depth)]
    else:
        grids = [model.grid] * model.depth
    found = []
    for x, grid in zip(layers, [grids[0], *grids], strict=True):
        full = jnp.promote_types(x.dtype, jnp.float32)
        x = x[:, model.num_prefix_tokens :].astype(full)
        places = np.stack([np.ones(grid), *np.indices(grid)], -1).reshape(1, -1, 3)
        z = jnp.concatenate([x, jnp.broadcast_to(jnp.asarray(places, full), (*x.shape[:2], 3))], -1)
        z = z.reshape(-1, z.shape[-1])
        found.append(jnp.matmul(z.T, z, precision=lax.Precision.HIGHEST))
    return found


def _read(train: np.ndarray, test: np.ndarray) -> Place:
    width = len(train) - 3
    x, one, place = slice(width), width, slice(width + 1, width + 3)
    count = train[one, one]
    means = train[one] / count
    moments = train / count - np.outer(means, means)  # covariances
    ridge = L2 * np.trace(moments[x, x]) / width * np.eye(width)
    weights = np.linalg.lstsq(moments[x, x] + ridge, moments[x, place], rcond=None)[0]
    # What is left is z @ residual, so that its squares are in the products.
    residual = np.concatenate([-weights, (means[x] @ weights - means[place])[None], np.eye(2)])
    missed = np.trace(residual.T @ test @ residual)
    spread = np.trace(test[place, place]) - np.sum(test[one, place] ** 2) / test[one, one]
    return Place(float(1 - missed / spread), float(np.sqrt(max(missed, 0) / test[one, one])))
