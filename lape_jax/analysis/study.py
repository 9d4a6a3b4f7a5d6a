"""All that the modules here say about one model, beside others: numbers, a table in text, and figures.

`numbers` are arrays by key. R is the number of the model, from 0, and L that of a layer, from 1:

    labels                     names of the models
    eps                        of the LayerNorms in the maps
    R/radius, R/largest_radius, R/background, R/two_dness     by layer, see `lape_jax.analysis.locality`
    R/rms                      by layer, of what it sees of the position (of a relative bias: of the bias); NaN if that
                               comes with lambda_2, the PE being in the residual stream, and was not measured
    R/token_pe_ratio           by layer, energy of the tokens by that of the position; NaN if not measured
    R/layerL/grid              rows and columns of patches
    R/layerL/correlation       (n, n), the map
    R/layerL/lambda            (3, n), lambda_1 to lambda_3 by patch, means over the images; only if measured
    R/table/correlation        (n, n), of the position table itself; only if there is one for all layers
    R/layerL/relative_bias     (heads, n, n); only if there is one (Swin: n tokens of a window)
"""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lape_jax.analysis import energy, locality, plots
from lape_jax.analysis.activations import Measured, measure, unmeasurable
from lape_jax.analysis.correlation import Map, centre, maps, relative_biases, table_maps, token_map
from lape_jax.analysis.effective_pe import SCRIPT_EPS, seen
from lape_jax.errors import UserError
from lape_jax.nn import position

if TYPE_CHECKING:
    import matplotlib.figure

MEASURES = {  # of a layer, as panels of a figure
    "radius": "Reach of the similarity (patches)",
    "background": "Cosine similarity of any two tokens",
    "two_dness": "Two-dimensional? (0: a line, 1: a plane)",
    "rms": "Size (RMS) of what is seen of the position",
}
HEAD = ("layer", "radius", "largest", "background", "2-D-ness", "PE_RMS", "tokens/PE", "lambda1", "lambda2", "lambda3")
SIMILARITY = "Cosine similarity of positions"


class Study(NamedTuple):
    """What is known of one model."""

    label: str
    delivers: bool  # whether its blocks add a PE to the normalised tokens, see `lape_jax.nn.join.Joining`
    maps: list[Map]  # by layer
    table: Map | None  # of the position table, if there is one for all layers
    biases: list[np.ndarray]  # relative, by layer, if there are any
    rms: list[float]  # by layer, with lambda_2 where there is one; NaN if that was not measured
    measured: list[Measured | None]  # by layer, or nothing

    @property
    def radius(self) -> list[float]:
        """How far the similarity reaches in each layer, in patches, see `locality.radius`."""
        return [locality.radius(found.values, found.grid) for found in self.maps]

    @property
    def background(self) -> list[float]:
        """Mean similarity of any two patches to each layer, see `locality.background`."""
        return [locality.background(found.values) for found in self.maps]

    @property
    def two_dness(self) -> list[float]:
        """How two-dimensional the map of each layer is, see `locality.two_dness`."""
        return [locality.two_dness(found.values, found.grid) for found in self.maps]

    @property
    def ratio(self) -> list[float]:
        """Energy of the tokens by that of the position, in each layer; NaN where it was not measured."""
        return [layer.ratio if layer else math.nan for layer in self.measured or [None] * len(self.maps)]

    @property
    def lambdas(self) -> np.ndarray:
        """The three lambdas of each layer, (layers, 3), means over patches; NaN where they were not measured."""
        layers = self.measured or [None] * len(self.maps)
        return np.stack([layer.lambdas.mean(1) if layer else np.full(3, np.nan) for layer in layers])


def study(
    label: str,
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Iterable[jax.Array | np.ndarray] | None = None,
    eps: float = SCRIPT_EPS,
) -> Study:
    """Studies the position embedding of one model.

    Args:
        label: what it is called.
        model: any classifier or Segmenter with a position table or a relative bias.
        variables: the variables of `model`.
        images: batches (b, h, w, c), normalised, to measure on; None to do without. Of no use without a position table,
            or to a model that cannot be measured (`lape_jax.analysis.activations.unmeasurable`).
        eps: see `lape_jax.analysis.effective_pe`.

    Raises:
        UserError: the model has no position embedding that can be shown, or `variables` are not its own.
    """
    found = maps(model, variables, eps)
    absolute, relative = position.parse_pe(model.pe)
    biases = relative_biases(model, variables) if relative else []
    stored = table_maps(model, variables) if absolute else []
    seen = absolute and images is not None and not unmeasurable(model)
    measured = measure(model, variables, images) if seen else []
    return Study(
        label=label,
        delivers=model.method.delivers,
        maps=found,
        table=stored[0] if len(stored) == 1 else None,
        biases=biases,
        rms=_sizes(model, variables, eps, biases, measured),
        measured=measured,
    )


def numbers(studies: Sequence[Study], eps: float = SCRIPT_EPS) -> dict[str, np.ndarray]:
    """Arrays by key, see the module."""
    arrays: dict[str, Any] = {"labels": [one.label for one in studies], "eps": eps}
    for number, one in enumerate(studies):
        per_layer = {name: getattr(one, name) for name in MEASURES} | {"token_pe_ratio": one.ratio}
        per_layer["largest_radius"] = [locality.largest_radius(found.grid) for found in one.maps]
        arrays |= {f"{number}/{name}": values for name, values in per_layer.items()}
        if one.table:
            arrays[f"{number}/table/correlation"] = one.table.values
        for layer, found in enumerate(one.maps, start=1):
            key = f"{number}/layer{layer}"
            arrays |= {f"{key}/grid": found.grid, f"{key}/correlation": found.values}
            if one.measured and one.measured[layer - 1]:
                arrays[f"{key}/lambda"] = one.measured[layer - 1].lambdas
            if one.biases:
                arrays[f"{key}/relative_bias"] = one.biases[layer - 1]
    return {key: np.asarray(value) for key, value in arrays.items()}


def text(one: Study) -> str:
    """A table, a line for each layer."""
    largest = [locality.largest_radius(found.grid) for found in one.maps]
    columns = [one.radius, largest, one.background, one.two_dness, one.rms, one.ratio]
    lines = [" ".join(f"{word:>10}" for word in HEAD)]
    for layer, values in enumerate(zip(*columns, *one.lambdas.T, strict=True), start=1):
        shown = ("-" if math.isnan(value) else f"{value:.3f}" for value in values)
        lines.append(" ".join(f"{word:>10}" for word in (str(layer), *shown)))
    return "\n".join([one.label, *lines])


def figures(
    studies: Sequence[Study], token: int | None = None, layers: Sequence[int] | None = None
) -> dict[str, "matplotlib.figure.Figure"]:
    """Figures by name: correlation_token, correlation_overall, locality, and lambda if anything was measured.

    Maps are of the table itself, if there is one, and of layers; a row for each model. Colours are fixed to [0, 1] as
    in the paper's figures: in maps of one token, and in overall maps of LaPE; other overall maps have their own range.

    Args:
        studies: one for each model, with different labels.
        token: which of the first stage's patches has its map drawn; None for the centre of each model's grid.
        layers: numbers of those whose maps are drawn; None for all.

    Raises:
        UserError: no such token, or a layer that no model has.
    """
    deepest = max(len(one.maps) for one in studies)
    for layer in layers or ():
        if not 1 <= layer <= deepest:
            raise UserError(f"layer {layer} is not one of the {deepest} layers, 1 to {deepest}")
    chosen = {one.label: _chosen(one, layers) for one in studies}
    fixed = {one.label: (0.0, 1.0) if one.delivers else None for one in studies}
    rows, overall = {}, {}
    for one in studies:
        rows[one.label] = [_token_panel(title, found, one, token) for title, found in chosen[one.label]]
        overall[one.label] = [
            plots.Panel(found.values, title, None if found is one.table else fixed[one.label])
            for title, found in chosen[one.label]
        ]
    drawn = {
        "correlation_token": plots.maps(rows, f"{SIMILARITY}: the marked token and every other one"),
        "correlation_overall": plots.maps(overall, f"{SIMILARITY}: every token and every other one"),
        "locality": plots.curves(
            _lines(studies, {title: name for name, title in MEASURES.items() if _known(studies, name)}),
            "layer",
            limits={MEASURES["two_dness"]: (-0.02, 1.02)},
        ),
    }
    if any(layer for one in studies for layer in one.measured):
        drawn["lambda"] = _lambda_figure(studies)
    return drawn


def render(
    studies: Sequence[Study], eps: float = SCRIPT_EPS, token: int | None = None, layers: Sequence[int] | None = None
) -> dict[str, bytes]:
    """Contents of files by name: every one of the `figures` as PNG and as PDF, and numbers.npz, all the `numbers`."""
    contents = {
        f"{name}.{form}": plots.render(figure, form)
        for name, figure in figures(studies, token, layers).items()
        for form in plots.FORMATS
    }
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **numbers(studies, eps))
    return contents | {"numbers.npz": arrays.getvalue()}


def distinct(studies: Sequence[Study], names: Sequence[str]) -> list[Study]:
    """The studies with labels that differ: where several have the same, their `names` follow in brackets.

    Raises:
        UserError: some have the same name, too.
    """
    labels = distinct_labels([one.label for one in studies], names)
    return [one._replace(label=label) for one, label in zip(studies, labels, strict=True)]


def distinct_labels(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """See `distinct`."""
    uses = Counter(labels)
    found = [one if uses[one] == 1 else f"{one} ({name})" for one, name in zip(labels, names, strict=True)]
    if len(set(found)) < len(found):
        raise UserError(f"{max(found, key=found.count)} is there twice: give each run once")
    return found


def _sizes(
    model: nn.Module,
    variables: Mapping[str, Any],
    eps: float,
    biases: Sequence[np.ndarray],
    measured: Sequence[Measured | None],
) -> list[float]:
    """RMS of what each layer sees of the position."""
    if biases and not position.parse_pe(model.pe)[0]:
        return [energy.rms(bias.reshape(-1, bias.shape[-1])) for bias in biases]
    layers = seen(model, variables, eps)
    if not model.method.in_stream:
        return [energy.rms(layer.table) for layer in layers]
    # `seen` leaves out lambda_2, which no map shows, but which makes the size.
    return [math.sqrt(layer.pe_energy) if layer else math.nan for layer in measured or [None] * len(layers)]


def _known(studies: Sequence[Study], name: str) -> bool:
    """Whether there is a number of some layer of some model."""
    return not all(math.isnan(value) for one in studies for value in getattr(one, name))


def _chosen(one: Study, layers: Sequence[int] | None) -> list[tuple[str, Map]]:
    """Title and map of what is drawn."""
    kept = [("the table", one.table)] if one.table else []
    return kept + [
        (f"layer {number}", found)
        for number, found in enumerate(one.maps, start=1)
        if layers is None or number in layers
    ]


def _token_panel(title: str, found: Map, one: Study, token: int | None) -> plots.Panel:
    first = one.maps[0].grid
    token = centre(first) if token is None else token
    token_map(one.maps[0], token)  # says if there is no such token
    # In later stages of a Swin the place of that token on a smaller grid.
    place = tuple(
        at * side // whole for at, side, whole in zip(divmod(token, first[1]), found.grid, first, strict=True)
    )
    return plots.Panel(token_map(found, place[0] * found.grid[1] + place[1]), title, (0.0, 1.0), place)


def _lines(studies: Sequence[Study], measures: Mapping[str, str]) -> dict[str, dict]:
    return {
        title: {one.label: (range(1, len(one.maps) + 1), getattr(one, name)) for one in studies}
        for title, name in measures.items()
    }


def _lambda_figure(studies: Sequence[Study]) -> "matplotlib.figure.Figure":
    names = ("tokens", "position", "bias")
    panels: dict[str, dict] = {f"lambda {i + 1}: factor of the {name}": {} for i, name in enumerate(names)}
    for one in studies:
        for title, values in zip(panels, one.lambdas.T, strict=True):
            panels[title][one.label] = (range(1, len(one.maps) + 1), values)
    ratio = "Energy of the tokens / of the position"
    panels |= _lines(studies, {ratio: "ratio"})
    return plots.curves(panels, "layer", "What attention sees of tokens and position", log=(ratio,))
