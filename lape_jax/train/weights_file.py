"""Weights in a file whose model is only named, --model=NAME and --model.KEY=VALUE, or which says it itself."""

from typing import Any

import flax.linen as nn

from lape_jax import models
from lape_jax.errors import UserError, listed
from lape_jax.port import about as abouts
from lape_jax.port import files
from lape_jax.port.checkpoint import Part, choose
from lape_jax.port.hub import local
from lape_jax.port.infer import infer
from lape_jax.train.trained import Trained


def of_name(path: str, name: str, settings: dict[str, Any]) -> Trained:
    """The weights in a file, on the host, and the model that they are for.

    What the file does not say of itself is read off the weights as far as they tell, and must be given where not.

    Args:
        path: FILE or FILE:KEY, see `lape_jax.port.files.read`.
        name: the name of the model, "" if the file says it.
        settings: those settings of the model that are given.

    Raises:
        UserError: there is no name, what is given contradicts the file, or no such model has these weights; then it
            says what the most probable one lacks or has too many.
    """
    here = local(path)
    known = abouts.read(here)
    name, settings = _asked(path, known, name, settings)
    weights, place = files.read(here)
    model, variables = _fitted(weights, place, name, settings)
    told = (known.classes, known.mean, known.std) if known else (None, None, None)
    return Trained(name, model, variables, *told, path, format=files.format_of(weights))


def _asked(path: str, known: abouts.About | None, name: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of the model: what the file says of itself, or else what is given."""
    if known is None:
        if not name:
            raise UserError(f"--model=NAME is missing: it is one of {listed(models.VARIANTS)}")
        return name, settings
    if name not in ("", known.model):
        raise UserError(f"--model={name} contradicts {path}, which holds weights of {known.model}: leave it out")
    model = _create(known.model, known.settings)
    for key, value in settings.items():
        if getattr(_create(known.model, {key: value}), key) != getattr(model, key):
            raise UserError(
                f"--model.{key}={value} contradicts {path}, which says {getattr(model, key)!r}: leave it out"
            )
    return known.model, known.settings


def _create(name: str, settings: dict[str, Any]) -> nn.Module:
    """The model of --model=NAME with the settings --model.KEY=VALUE; errors name the option."""
    try:
        return models.create(name, **settings)
    except UserError as error:
        raise UserError(f"--model={name}: {error}") from error


def _fitted(
    weights: dict[str, Any], place: str, name: str, settings: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of the family and size `name` that the weights are for, and its variables."""
    asked = _create(name, settings)
    fixed = {key: getattr(asked, key) for key in settings}

    def attempt(part: Part) -> tuple[nn.Module, tuple[dict[str, Any], tuple[str, ...]]]:
        given = {**part.arrays, **part.outside}
        candidates = infer(lambda probe: files.stored_shapes(given, probe), asked)
        return files.fit_first([one.clone(**fixed) for one in candidates], lambda model: files.fit_part(part, model))

    with files.speaking_of(place):
        part, (model, (variables, left)) = choose(weights, files.known(asked), attempt)
    files.say(place, (*part.notes, *left))
    return model, variables
