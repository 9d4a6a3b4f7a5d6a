"""What layers make of images, as vectors: for those who ask what a model knows without training it."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.port.params import flatten

CLASS, MEAN, HEAD = "class token", "mean of patches", "head"  # the last: what the head sees


def check_tokens(model: nn.Module) -> None:
    """Raises UserError unless the model's layers have tokens."""
    if not hasattr(model, "num_prefix_tokens"):
        raise UserError(f"a {type(model).__name__} has no tokens to probe: a ViT, CCT, CeiT or Swin has")


def layer_tokens(model: nn.Module, out: Mapping[str, Any]) -> list[Float[Array, "b n d"]]:
    """The tokens that leave each block, from what a model puts out."""
    stacks = out["tokens"] if isinstance(out["tokens"], list | tuple) else [out["tokens"]]
    return [layer for stack in stacks for layer in stack]


def of_images(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "b h w c"]
) -> dict[str, Float[Array, "b d"]]:
    """Features by place: "1 class token", "1 mean of patches" and so on for all blocks, counted from 1, and "head"."""
    _, out = model.apply(variables, images, train=False)
    found = {}
    for number, tokens in enumerate(layer_tokens(model, out), start=1):
        if model.class_row is not None:
            found[f"{number} {CLASS}"] = tokens[:, model.class_row]
        found[f"{number} {MEAN}"] = jnp.mean(tokens[:, model.num_prefix_tokens :], axis=1)
    return {name: x.astype(jnp.float32) for name, x in {**found, HEAD: out["pre_logits"]}.items()}


def collect(
    model: nn.Module, variables: Mapping[str, Any], examples: Iterable[tuple[jax.Array, np.ndarray]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`of_images` of all examples, (n, d) by place, and their classes (n,).

    Args:
        examples: batches of normalised images and their classes.

    Raises:
        UserError: the model has no tokens, or there are no examples.
    """
    check_tokens(model)
    step = jax.jit(functools.partial(of_images, model))
    parts, labels = [], []
    for images, classes in examples:
        parts.append(jax.device_get(step(variables, images)))
        labels.append(classes)
    if not parts:
        raise UserError("there are no images to probe with")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, np.concatenate(labels)


def fingerprint(model: nn.Module, variables: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """A name for features: another one if model, weights or what they are `about` (plain values) are others."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(repr(model).encode())
    for path, array in sorted(flatten(variables).items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
