"""How much of the classes can be read off features that nobody trains for it: three ways, each deterministic.

    kNN       the weighted vote of the 20 nearest training images by cosine, weights exp(cosine / 0.07), as in DINO
              (Caron et al. 2021, arXiv:2104.14294)
    linear    multinomial logistic regression on standardised features; its L2 is the one of `L2` that is best on every
              fifth training image after a fit on the others, and then it is fitted to all of them
    n-shot    ridge regression on n images of each class, L2 by leave-one-out; the mean of `DRAWS` draws

All are accuracies in percent. scikit-learn fits the latter two.
"""

import csv
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lape_jax.analysis import plots
from lape_jax.errors import UserError

if TYPE_CHECKING:
    import matplotlib.figure

_log = logging.getLogger(__name__)

NEIGHBOURS, TEMPERATURE = 20, 0.07
L2 = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean loss over images
HELD_OUT = 5  # every such training image
ALPHAS = tuple(10.0**power for power in range(-3, 6))  # L2 of few shots, of the sum over images
DRAWS = 5
BLOCK = 1024  # test images at a time whose neighbours are looked for
KNN, LINEAR = "kNN", "linear"
Features = Float[np.ndarray, "n d"]
Classes = Int[np.ndarray, " n"]


class Split(NamedTuple):
    """Features and classes of images."""

    features: np.ndarray  # (n, d)
    classes: np.ndarray  # (n,)


def sklearn() -> Any:
    """What is used of scikit-learn.

    Raises:
        UserError: it is not there.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
    except ImportError as error:
        raise UserError(
            "a probe is fitted by scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    return SimpleNamespace(
        ConvergenceWarning=ConvergenceWarning,
        LogisticRegression=LogisticRegression,
        RidgeClassifierCV=RidgeClassifierCV,
    )


def knn(train: Split, test: Split, count: int, neighbours: int = NEIGHBOURS) -> float:
    """Accuracy of the weighted vote of the nearest training images; `count` classes."""
    known, asked = (_unit(split.features) for split in (train, test))
    right, neighbours = 0, min(neighbours, len(known))
    for start in range(0, len(asked), BLOCK):
        cosines = asked[start : start + BLOCK] @ known.T
        nearest = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
        weights = np.exp(np.take_along_axis(cosines, nearest, axis=1) / TEMPERATURE)
        votes = np.zeros((len(nearest), count))
        np.add.at(votes, (np.arange(len(nearest))[:, None], train.classes[nearest]), weights)
        right += int((votes.argmax(1) == test.classes[start : start + BLOCK]).sum())
    return 100 * right / len(asked)


def linear(train: Split, test: Split) -> tuple[float, float]:
    """Accuracy of a logistic regression, and the L2 that was chosen for it."""
    held = np.arange(len(train.classes)) % HELD_OUT == 0
    parts = [Split(train.features[rows], train.classes[rows]) for rows in (~held, held)]
    scores = [_logistic(*parts, l2) for l2 in L2]
    best = L2[int(np.argmax(scores))]
    return _logistic(train, test, best), best


def few_shot(train: Split, test: Split, shots: int) -> float:
    """Mean accuracy of ridge regressions on `shots` images of each class.

    Raises:
        UserError: a class has fewer.
    """
    of_class = [np.flatnonzero(train.classes == one) for one in np.unique(train.classes)]
    if min(map(len, of_class)) < shots:
        raise UserError(f"{shots} images of each class: there are fewer training images of some class")
    found = []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, shots])
        rows = np.concatenate([rng.choice(members, shots, replace=False) for members in of_class])
        shown, asked = _standardised(train.features[rows], test.features)
        fitted = sklearn().RidgeClassifierCV(alphas=ALPHAS).fit(shown, train.classes[rows])
        found.append(100 * float(np.mean(fitted.predict(asked) == test.classes)))
    return float(np.mean(found))


def probe(
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    classes: tuple[np.ndarray, np.ndarray],
    shots: Sequence[int],
) -> dict[str, dict[str, float]]:
    """All of it by place of the features, and by name: kNN, linear, L2, n-shot."""
    count = int(max(map(np.max, classes))) + 1
    found = {}
    for place in train:
        here = Split(train[place], classes[0]), Split(test[place], classes[1])
        accuracy, l2 = linear(*here)
        few = {f"{n}-shot": few_shot(*here, n) for n in shots}
        found[place] = {KNN: knn(*here, count), LINEAR: accuracy, "L2": l2, **few}
    return found


def text(found: Mapping[str, Mapping[str, float]]) -> str:
    """A table, a line for each place."""
    names = list(next(iter(found.values())))
    lines = [f"{'layer':20}" + "".join(f"{name:>9}" for name in names)]
    for place, scores in found.items():
        lines.append(
            f"{place:20}" + "".join(f"{x:9.0e}" if name == "L2" else f"{x:9.2f}" for name, x in scores.items())
        )
    return "\n".join(lines)


def table(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """CSV, a line for each model and place."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = list(next(iter(next(iter(models.values())).values())))
    writer.writerow(["model", "layer", *names])
    for label, places in models.items():
        writer.writerows([label, place, *scores.values()] for place, scores in places.items())
    return file.getvalue()


def figure(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> "matplotlib.figure.Figure":
    """A panel for each way and kind of token, a line for each model, by layer."""
    panels: dict[str, dict[str, tuple[list, list]]] = {}
    for label, places in models.items():
        for place, scores in places.items():
            number, _, kind = place.partition(" ")
            for name, value in scores.items() if kind else ():
                if name != "L2":
                    x, y = panels.setdefault(f"{name}, {kind} (%)", {}).setdefault(label, ([], []))
                    x.append(int(number))
                    y.append(value)
    return plots.curves(panels, "layer", "What can be read off the tokens of each layer")


def _logistic(train: Split, test: Split, l2: float) -> float:
    shown, asked = _standardised(train.features, test.features)
    library = sklearn()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", library.ConvergenceWarning)
        fitted = library.LogisticRegression(C=1 / (l2 * len(shown)), max_iter=1000).fit(shown, train.classes)
    if any(issubclass(one.category, library.ConvergenceWarning) for one in caught):
        _log.warning("a linear probe with L2 %g has not converged after 1000 iterations", l2)
    return 100 * float(np.mean(fitted.predict(asked) == test.classes))


def _standardised(train: Features, test: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
    """Both with the mean and the deviation of the first; channels that do not vary are 0."""
    train, test = (np.asarray(x, np.float64) for x in (train, test))
    mean, deviation = train.mean(0), train.std(0)
    scale = np.where(deviation > 1e-12, 1 / np.maximum(deviation, 1e-12), 0)
    return (train - mean) * scale, (test - mean) * scale


def _unit(x: Features) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
