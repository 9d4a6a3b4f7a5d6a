"""The teacher of a distilled run: from a file of weights or from another run, onto the mesh."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lape_jax import tasks
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.parallel.arrays import place
from lape_jax.tasks import config as configs
from lape_jax.train import trained

SHARED = ("image_size", "channels", "mean", "std")  # of the data: the teacher is shown the student's images


class Teacher(NamedTuple):
    """A model, and its variables in full on every device."""

    model: nn.Module
    variables: Any


def load(config: ConfigDict, student: nn.Module, classes: tuple[str, ...], mesh: jax.sharding.Mesh) -> Teacher | None:
    """The teacher that the task names, None if it names none.

    Of a run, its best checkpoint is the teacher (`lape_jax.train.trained.of_run`), and what its own config says of the
    model holds. The teacher computes in the student's type.

    Raises:
        UserError: there is a distillation token and no teacher, or the reverse; the teacher does not exist or cannot
            be read; or it was made for other classes, image sizes, channels or another normalisation.
    """
    found = tasks.of(config).teacher(config, student, classes)
    if found is None:
        return None
    if isinstance(found, Path):
        try:
            return _from_run(found, config, classes, mesh)
        except UserError as error:
            raise UserError(f"config.distill.teacher: {error}") from error
    model, variables = found
    return Teacher(model, jax.tree.map(lambda array: place(array, sharding.replicated(mesh)), variables))


def _from_run(path: Path, config: ConfigDict, classes: tuple[str, ...], mesh: jax.sharding.Mesh) -> Teacher:
    theirs = configs.from_json(path / "config.json")
    if theirs.task != config.task:
        raise UserError(
            f"the teacher in {str(path)!r} has learned the task {theirs.task!r}, and this run learns {config.task!r}"
        )
    for key in SHARED:
        if theirs.data[key] != config.data[key]:
            raise UserError(
                f"the teacher in {str(path)!r} was trained with data.{key} {theirs.data[key]!r}, and this run has "
                f"{config.data[key]!r}: the two must agree"
            )
    _check_classes(path, classes)
    theirs.dtype = config.dtype
    if "dtype" in theirs.model:
        del theirs.model["dtype"]
    found = trained.of_run(path, theirs, mesh=mesh, what="the teacher")
    return Teacher(found.model, found.variables)


def _check_classes(path: Path, classes: tuple[str, ...]) -> None:
    known = trained.classes(path, "the teacher")
    if len(known) != len(classes):
        raise UserError(
            f"the teacher in {str(path)!r} knows {len(known)} classes, and the data have {len(classes)}: it "
            f"must have learned them"
        )
    for i, (theirs, ours) in enumerate(zip(known, classes, strict=True)):
        if theirs != ours:
            raise UserError(
                f"class {i} of the teacher in {str(path)!r} is {theirs!r}, and that of the data is {ours!r}: it must "
                f"have learned the same classes in the same order"
            )
