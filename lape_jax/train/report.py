"""What a run was and came to, in its workdir: report.md and the figures that it shows."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from lape_jax import atomic, tasks
from lape_jax.analysis import plots
from lape_jax.analysis import study as studies
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks.task import SHEET, Task
from lape_jax.train import state as states
from lape_jax.train.experiment import Experiment

Line = Mapping[str, int | float | None]  # of metrics.jsonl
# Of curves.png: by title, the metrics and what they are called; those of the task stand in between.
LOSS = {"loss": {"train/loss": "training", "val/loss": "validation", "val/ema_loss": "validation (EMA)"}}
SPEED = {"learning rate": {"lr": "training"}, "images/s": {"img_per_sec": "training"}}
CAPTIONS = {
    "curves": "By step. Training metrics are of the augmented images, under dropout: the loss of their mixed and "
    "smoothed labels, accuracies of those before mixing.",
    "images": f"Up to {SHEET} images of the first epoch as the model sees them, drawn as if they were one batch.",
    "correlation_token": "Cosine similarity of the marked token's position to every other, by layer, at the end.",
    "correlation_overall": "The same for all tokens: row i, column j is the cosine of positions i and j.",
}


def write(workdir: Path, e: Experiment, state: states.TrainState, best_step: int | None) -> dict[str, bytes]:
    """Writes report.md and figures/*.png of a finished run; of several processes the first, but all must call it.

    Returns the PNGs by name (of the first process).

    The same run gives the same files, but for what was measured in seconds.

    Args:
        state: the last one.
        best_step: the checkpoint with the best evaluation.

    Raises:
        UserError: an image cannot be read, or a file not be written.
    """
    config, model = e.config, e.model
    # Positions are few numbers, but FSDP may have cut them up.
    variables = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(e.mesh))(state.variables)
    if jax.process_index():
        return {}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    task = e.task
    figures = {"curves": plots.curves(curves(lines, task))}
    sheet = task.sheet(config, model, e.source, e.plan.mixing > 0)
    if sheet is not None:
        figures["images"] = plots.image_sheet(*sheet, limits=(0.0, 1.0))
    positions = ""
    try:
        found = studies.study(f"{model.joining}, {model.pe}", model, jax.device_get(variables))
    except UserError as error:
        positions = f"No maps of positions: {error}."
    else:
        drawn = studies.figures([found])
        figures |= {name: drawn[name] for name in ("correlation_token", "correlation_overall")}
        positions = f"In numbers (`lape_jax.analysis` says what they are):\n\n```\n{studies.text(found)}\n```"
    text = markdown(workdir.name, config, model, lines, best_step, list(figures), positions, len(e.classes))
    try:
        (workdir / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(workdir / 'figures')!r} cannot be made: {error.strerror}") from None
    images = {name: plots.render(figure, "png") for name, figure in figures.items()}
    contents = {f"figures/{name}.png": image for name, image in images.items()} | {"report.md": text.encode()}
    for name, content in contents.items():
        atomic.write(workdir / name, content)
    return images


def curves(lines: Sequence[Line], task: Task) -> dict[str, dict[str, tuple[list, list]]]:
    """The lines of metrics.jsonl as `lape_jax.analysis.plots.curves` takes them."""
    panels: dict[str, dict[str, tuple[list, list]]] = {}
    for title, names in (LOSS | dict(task.panels) | SPEED).items():
        for name, shown in names.items():
            points = [(line["step"], math.nan if line[name] is None else line[name]) for line in lines if name in line]
            if points:
                x, y = zip(*points, strict=True)
                panels.setdefault(title, {})[shown] = (list(x), list(y))
    return panels


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
        f"{tasks.of(config).describe_augmentation(config)}. Best checkpoint: step {best_step}.",
        "\n".join(["| | last value |", "|---|---|", *rows]),
        *(f"![{figure}](figures/{figure}.png)\n\n{CAPTIONS[figure]}" for figure in figures),
        positions,
        "The whole run: config.json, metrics.jsonl, checkpoints/. More figures: `python -m lape_jax.visualize`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
