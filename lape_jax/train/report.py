"""What a run was and came to, in its workdir: report.md and the figures that it shows."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from lape_jax.analysis import overlays, plots
from lape_jax.analysis import study as studies
from lape_jax.augment import recipe
from lape_jax.data import decode, masks, order, scene_transforms
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import SceneSource, Source
from lape_jax.errors import UserError
from lape_jax.port import files
from lape_jax.train import config as configs
from lape_jax.train import plan as plans
from lape_jax.train import setup, sharding
from lape_jax.train import state as states

SHEET = 32  # images
Line = Mapping[str, int | float | None]  # of metrics.jsonl
PANELS = {  # of curves.png: by title, the metrics and what they are called
    "loss": {"train/loss": "training", "val/loss": "validation", "val/ema_loss": "validation (running mean)"},
    "top-1, %": {"train/top1": "training", "val/top1": "validation", "val/ema_top1": "validation (running mean)"},
    "mIoU, %": {"val/miou": "validation", "val/ema_miou": "validation (running mean)"},
    "pixel accuracy, %": {"train/pixel_accuracy": "training", "val/pixel_accuracy": "validation"},
    "learning rate": {"lr": "training"},
    "images/s": {"img_per_sec": "training"},
}
CAPTIONS = {
    "curves": "By step. Training metrics are of the augmented images, under dropout: the loss of their mixed and "
    "smoothed labels, accuracies of those before mixing.",
    "images": f"Up to {SHEET} images of the first epoch as the model sees them, drawn as if they were one batch.",
    "correlation_token": "How alike the position of the marked token is to that of every other, by layer, at the end.",
    "correlation_overall": "The same for all tokens: row i, column j is the cosine of positions i and j.",
}


def write(
    workdir: Path,
    config: ConfigDict,
    model: nn.Module,
    state: states.TrainState,
    source: Source | SceneSource,
    mesh: jax.sharding.Mesh,
    best_step: int | None,
) -> None:
    """Writes report.md and figures/*.png of a finished run; of several processes the first, but all must call it.

    The same run gives the same files, but for what was measured in seconds.

    Args:
        state: the last one.
        source: of the training images.
        best_step: the checkpoint with the best evaluation.

    Raises:
        UserError: an image cannot be read, or a file not be written.
    """
    # Positions are few numbers, but FSDP may have cut them up.
    variables = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(state.variables)
    if jax.process_index():
        return
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    sheet, titles = crops(config, source) if config.task == "segment" else augmented(config, model, source)
    figures = {
        "curves": plots.curves(curves(lines)),
        "images": plots.image_sheet(sheet, titles, limits=(0.0, 1.0)),
    }
    positions = ""
    try:
        found = studies.study(f"{model.joining}, {model.pe}", model, jax.device_get(variables))
    except UserError as error:
        positions = f"No maps of positions: {error}."
    else:
        drawn = studies.figures([found])
        figures |= {name: drawn[name] for name in ("correlation_token", "correlation_overall")}
        positions = f"In numbers (`lape_jax.analysis` says what they are):\n\n```\n{studies.text(found)}\n```"
    text = markdown(workdir.name, config, model, lines, best_step, list(figures), positions, len(source.classes))
    try:
        (workdir / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(workdir / 'figures')!r} cannot be made: {error.strerror}") from None
    contents = {f"figures/{name}.png": plots.render(figure, "png") for name, figure in figures.items()}
    for name, content in (contents | {"report.md": text.encode()}).items():
        with files.replacing(workdir / name) as file:
            file.write(content)


def curves(lines: Sequence[Line]) -> dict[str, dict[str, tuple[list, list]]]:
    """The lines of metrics.jsonl as `lape_jax.analysis.plots.curves` takes them."""
    panels: dict[str, dict[str, tuple[list, list]]] = {}
    for title, names in PANELS.items():
        for name, shown in names.items():
            points = [(line["step"], math.nan if line[name] is None else line[name]) for line in lines if name in line]
            if points:
                x, y = zip(*points, strict=True)
                panels.setdefault(title, {})[shown] = (list(x), list(y))
    return panels


def augmented(config: ConfigDict, model: nn.Module, source: Source) -> tuple[np.ndarray, list[str]]:
    """Training images as the model sees them at step 0, but for the normalisation, and what their labels are."""
    images, labels = [], []
    count = min(SHEET, len(source))
    for position, index in enumerate(order.batch_indices(config.seed, 0, count, len(source))):
        example = source[int(index)]
        rng = order.augment_rng(config.seed, 0, position)
        with contextlib.suppress(CorruptImage):  # training has said so
            crop = setup.host_crop(config)
            images.append(decode.train_image(example.image, config.data.channels, example.name, rng=rng, **crop))
            labels.append(example.label)
    batch = {
        "image": jnp.asarray(np.stack(images)),
        "label": jnp.asarray(labels, jnp.int32),
        "mask": jnp.ones(len(labels)),
    }
    mesh = sharding.make_mesh(configs.base().mesh, jax.local_devices()[:1])
    augment = recipe.make(config, num_classes=model.num_classes, mesh=mesh)
    mixing = plans.make(config, len(source)).mixing > 0
    seen = jax.jit(lambda batch, key: augment(batch, key, mixing))(batch, jax.random.key(config.seed))
    images = np.asarray(seen["image"]) * np.asarray(config.data.std) + np.asarray(config.data.mean)
    least = 2 * config.loss.label_smoothing / model.num_classes + 1e-3
    return images, [_label(target, source.classes, least) for target in np.asarray(seen["target"])]


def crops(config: ConfigDict, source: SceneSource) -> tuple[np.ndarray, list[str]]:
    """Crops of training images at step 0 under the colours of their labels, and the classes that cover most of them."""
    images, titles = [], []
    classes, count = source.classes, min(SHEET, len(source))
    colours = overlays.palette(len(classes))
    for position, index in enumerate(order.batch_indices(config.seed, 0, count, len(source))):
        rng = order.augment_rng(config.seed, 0, position)
        with contextlib.suppress(CorruptImage):
            whole = masks.decode_scene(source[int(index)], config.data.channels, len(classes))
            pixels, labels = scene_transforms.train_scene(*whole, rng=rng, **setup.scene_crop(config))
            images.append(overlays.overlay(pixels, labels, colours))
            titles.append(", ".join(classes[label][:9] for label in list(overlays.shares(labels, len(classes)))[:2]))
    return np.stack(images) / 255, titles


def _label(target: np.ndarray, classes: tuple[str, ...], least: float) -> str:
    """The class, or the two that were mixed."""
    second, first = np.argsort(target, kind="stable")[-2:]
    if target[second] < least:
        return classes[first][:16]
    return f"{target[first]:.2f} {classes[first][:8]} + {target[second]:.2f} {classes[second][:8]}"


def markdown(
    name: str,
    config: ConfigDict,
    model: nn.Module,
    lines: Sequence[Line],
    best_step: int | None,
    figures: list[str],
    positions: str,
    classes: int,
) -> str:
    """The text of report.md."""
    count = parameter_overview.count_parameters(model.param_shapes())
    data = " ".join(filter(None, (config.data.source, config.data.name)))
    last = {key: value for line in lines for key, value in line.items()}
    metrics = {key: value for key, value in sorted(last.items()) if key.startswith(("train/", "val/"))}
    rows = [f"| {key} | {value:.6g} |" for key, value in metrics.items() if value is not None]
    parts = [
        f"# {name}",
        f"{config.model.name}, joining {model.joining}, position embedding {model.pe}: {count:,} parameters. Data: "
        f"{data}, {classes} classes, images of {config.data.image_size} pixels. {last['step']:,} steps of "
        f"{config.batch_size} images ({last['epoch']:.4g} epochs), seed {config.seed}, {config.dtype}. Augmentation: "
        f"{recipe.describe(config)}. Best checkpoint: step {best_step}.",
        "\n".join(["| | last value |", "|---|---|", *rows]),
        *(f"![{figure}](figures/{figure}.png)\n\n{CAPTIONS[figure]}" for figure in figures),
        positions,
        "The whole run: config.json, metrics.jsonl, checkpoints/. More figures: `python -m lape_jax.visualize`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
