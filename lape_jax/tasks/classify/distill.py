"""Hard distillation (DeiT, Touvron et al. 2021): the distillation token learns the class that a teacher predicts.

The teacher sees the very images that the student learns from, augmented, mixed and normalised. Its variables are an
argument of the loss, so that they reach a compiled step as an input and not as constants inside it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port import about
from lape_jax.port.contents import directory_weights, split
from lape_jax.port.hub import local
from lape_jax.tasks.classify.loss import cross_entropy, in_top, training_outputs

LABELS = "labels"  # for `distill.teacher`: no teacher, the distillation token learns the labels as the class token does


def check(config: Any, student: nn.Module) -> None:
    """Raises UserError unless there is a teacher exactly where there is a distillation token to learn from it."""
    path = config.distill.teacher
    distilled = getattr(student, "distilled", False) and student.dist_head
    if distilled and not path:
        raise UserError(
            f"{config.model.name} has a distillation token, which learns from a teacher, but config.distill.teacher is "
            f"empty: set it to a file of weights, to the workdir of a run, or to '{LABELS}' to do without"
        )
    if path and not distilled:
        raise UserError(
            f"config.distill.teacher is {path!r}, but {config.model.name} has no distillation token to learn from it: "
            f"use a distilled model, or leave the teacher out"
        )


def teacher(config: Any, student: nn.Module, classes: Sequence[str]) -> Path | tuple[nn.Module, dict] | None:
    """Who teaches `student`: a run's workdir, or a file's model and variables; None if nobody, or the labels, do.

    Raises:
        UserError: as `check` and `load_teacher`.
    """
    check(config, student)
    if config.distill.teacher in ("", LABELS):
        return None
    path = Path(config.distill.teacher).expanduser()
    return path if path.is_dir() and not directory_weights(path) else load_teacher(config, student, classes)


def load_teacher(config: Any, student: nn.Module, classes: Sequence[str]) -> tuple[nn.Module, dict]:
    """The teacher whose weights are in the file `config.distill.teacher`, for the classes and images of `student`.

    Args:
        config: the config of the run; `distill.model` names the teacher's model.
        student: the model of the run, whose number of classes, image size, channels and type the teacher has to share.
        classes: names of the run's classes, which the teacher has to share if its file says what it is of.

    Returns:
        The model, and its variables on the host, in float32 as all variables.

    Raises:
        UserError: there is no such file, the model is not named or unknown, or the weights are not those of this model
            with these classes and images.
    """
    path, name = Path(config.distill.teacher).expanduser(), config.distill.model
    here = local(path)
    if not split(here)[0].exists():
        raise UserError(
            f"config.distill.teacher is {str(path)!r}, which does not exist: it must be a file of weights, or the "
            f"workdir of a run"
        )
    known = about.read(here)
    if known is not None:
        _agree(config, known, path, classes)
        name = known.model
    if not name:
        raise UserError(
            f"config.distill.model is empty: the weights in {str(path)!r} need the name of their model, for example "
            f"regnety_160"
        )
    *size, channels = student.input_shape
    implied = {"num_classes": student.num_classes, "image_size": tuple(size), "in_channels": channels}
    try:
        teacher = models.create(name, **{**(known.settings if known else {}), **implied}, dtype=student.dtype)
    except UserError as error:
        raise UserError(f"config.distill.model: {error}") from error
    if teacher.answers != student.answers:
        what = "nothing" if teacher.answers == "nothing" else f"each {teacher.answers}"
        raise UserError(f"config.distill.model is {name}, which gives a class to {what}, and not to an image")
    try:
        variables = port.load(here, teacher)
    except UserError as error:
        raise UserError(
            f"config.distill.teacher, read as {name} for {student.num_classes} classes and images of {size[0]} x "
            f"{size[1]} pixels with {channels} channel{'s' if channels > 1 else ''}: {error}"
        ) from error
    return teacher, jax.tree.map(lambda array: array.astype(np.float32), variables)


def _agree(config: Any, known: about.About, path: Path, classes: Sequence[str]) -> None:
    """Raises UserError if a teacher's file says that it is of another model, of other classes or of other images."""
    if config.distill.model not in ("", known.model):
        raise UserError(
            f"config.distill.model is {config.distill.model}, and {path} holds weights of {known.model}: leave it out"
        )
    for key in ("channels", "mean", "std"):
        theirs, ours = getattr(known, key), config.data[key]
        if theirs not in (ours, ()):
            raise UserError(
                f"config.distill.teacher: the teacher in {str(path)!r} was trained with data.{key} {theirs!r}, and "
                f"this run has {ours!r}: the two must agree"
            )
    if known.classes not in ((), tuple(classes)) and config.data.match != "order":
        there, here = next((a, b) for a, b in zip((*known.classes, None), (*classes, None), strict=False) if a != b)
        raise UserError(
            f"config.distill.teacher: the teacher in {str(path)!r} knows other classes: {there!r} there where {here!r} "
            f"is here (data.match=order takes them number by number)"
        )


def hard_labels(teacher: nn.Module, variables: Any, images: Float[Array, "b h w c"]) -> Int[Array, " b"]:
    """The class to which the teacher, in evaluation mode, gives the largest logit; of equal ones the lowest."""
    logits, _ = teacher.apply(variables, images, train=False)
    return jax.lax.stop_gradient(jnp.argmax(logits, axis=1).astype(jnp.int32))


def hard_distillation_loss(
    cls_logits: Float[Array, "b k"],
    dist_logits: Float[Array, "b k"],
    targets: Float[Array, "b k"],
    teacher_labels: Int[Array, " b"],
    alpha: float,
) -> Float[Array, " b"]:
    """(1 - alpha) CE(class logits, targets) + alpha CE(distillation logits, teacher's labels), per example, in nats.

    The targets are soft (mixed, smoothed), the teacher's labels are neither. Source: facebookresearch/deit, losses.py.
    """
    taught = jax.nn.one_hot(teacher_labels, dist_logits.shape[1], dtype=dist_logits.dtype)
    own, from_teacher = cross_entropy(cls_logits, targets), cross_entropy(dist_logits, taught)
    return (1 - alpha) * own + alpha * from_teacher


def training_loss(model: nn.Module, teacher: nn.Module, alpha: float) -> Callable:
    """The function (params, collections, batch, key, teacher's variables) -> (summed loss, (sums, collections)).

    Batch, sums and collections are those of `lape_jax.tasks.classify.loss.training_loss`; top1 is that of both heads
    together, as in evaluation.
    """

    def loss(params, collections, batch, key, variables):
        (cls, dist), collections = training_outputs(model, params, collections, batch["image"], key)
        labels = hard_labels(teacher, variables, batch["image"])
        mask = batch["mask"]
        total = jnp.sum(mask * hard_distillation_loss(cls, dist, batch["target"], labels, alpha))
        right = jnp.sum(mask * in_top(cls + dist, batch["label"], 1))
        return total, ({"loss": total, "top1": right, "examples": mask.sum()}, collections)

    return loss
