"""Files of what `lape_jax.analysis.attention` finds out about several models, by name."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lape_jax.analysis import attention, plots
from lape_jax.analysis.attention import Shares


class Looking(NamedTuple):
    """A model, and the normalised images (b, h, w, c) that it looks at."""

    model: nn.Module
    variables: dict
    images: np.ndarray


def maps(models: Mapping[str, Looking], query: str, layers: Sequence[int] | None = None) -> dict[str, bytes]:
    """attention_R_I.png and .pdf for model R and image I, from 0, and attention.npz, all of it as arrays.

    Its keys: "labels"; "R/I/image"; "R/I/attention", the weights (layers, heads, n, n) with class and distillation
    token first; "R/I/rollout" (n, n); "R/grid", rows and columns of patches; "R/row", the token that is drawn.

    Args:
        query: which token looks, see `attention.row_of`.
        layers: that are drawn, from 1; None for all.

    Raises:
        UserError: see `attention.check` and `attention.row_of`.
    """
    arrays: dict[str, np.ndarray] = {"labels": np.asarray(list(models))}
    contents: dict[str, bytes] = {}
    for number, (model, variables, images) in enumerate(models.values()):
        attention.check(model)
        row = attention.row_of(model, query)
        arrays |= {f"{number}/grid": np.asarray(model.grid), f"{number}/row": np.asarray(row)}
        looked = attention.attention(model, variables, jnp.asarray(images))
        for index, (image, weights) in enumerate(zip(images, looked, strict=True)):
            drawn = attention.figure(model, weights, np.asarray(image), row, layers)
            contents |= {f"attention_{number}_{index}.{form}": plots.render(drawn, form) for form in plots.FORMATS}
            found = {"image": np.asarray(image), "attention": weights, "rollout": attention.rollout(weights)}
            arrays |= {f"{number}/{index}/{name}": x for name, x in found.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return contents | {"attention.npz": file.getvalue()}


def shares(models: Mapping[str, Sequence[Shares]]) -> dict[str, bytes]:
    """shares.csv, .png and .pdf: what makes the logits of each layer."""
    drawn = attention.shares_figure(models)
    files = {f"shares.{form}": plots.render(drawn, form) for form in plots.FORMATS}
    return {"shares.csv": attention.shares_table(models).encode(), **files}
