"""Images of any size, tile by tile: logits of windows' patches become the classes of pixels, and are counted."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32, Int64

from lape_jax.parallel import sharding
from lape_jax.tasks.segment import loss
from lape_jax.tasks.segment.scene import PADDING

SIDE = 256  # most pixels of a tile's side; it has two arrays of SIDE x SIDE x classes floats on the devices
_FULL = 2**31 - 1  # what a count on the device can hold


@dataclasses.dataclass
class View:
    """One canvas of an image, or its mirror image.

    Attributes:
        rows, columns: what the patches of each window contribute, see `lape_jax.tasks.segment.sliding.weights`.
        maps: for each window, row by row, a batch of logits of patches, and the place of the window in the batch.
    """

    rows: Float32[np.ndarray, "down h r"]
    columns: Float32[np.ndarray, "across w c"]
    maps: list[tuple[jax.Array, np.int32]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Image:
    """The labels and the views of an image."""

    labels: Int32[np.ndarray, "h w"]
    views: list[View]

    @property
    def complete(self) -> bool:
        """Whether all windows have their logits."""
        return all(len(view.maps) == len(view.rows) * len(view.columns) for view in self.views)


class Tiling:
    """The programs of tiles (height, width).

    Args:
        mesh: the mesh of devices; the shards of a batch divide the height.
        shape: height and width of a tile.
        num_classes: how many classes there are.
    """

    def __init__(self, mesh: Mesh, shape: tuple[int, int], num_classes: int):
        self.mesh, self.shape, self.num_classes = mesh, shape, num_classes
        self.rows, self.everywhere = sharding.batch_sharding(mesh, shape[0]), sharding.replicated(mesh)
        self.add_window = jax.jit(loss.add_window, donate_argnums=0, out_shardings=self.everywhere)
        results = (self.rows, self.rows, self.everywhere, self.rows)
        self.add_band = jax.jit(loss.add_band, donate_argnums=(0, 1, 2), out_shardings=results)

    def cut(self, weights: Float32[np.ndarray, "anchors length patches"], axis: int) -> list[dict[int, jax.Array]]:
        """Lists for each tile along the axis what the windows that reach into it contribute, by their number."""
        where = self.rows if axis == 0 else self.everywhere
        side, parts = self.shape[axis], []
        for start in range(0, weights.shape[1], side):
            part = weights[:, start : start + side]
            part = np.pad(part, ((0, 0), (0, side - part.shape[1]), (0, 0)))
            parts.append(
                {number: jax.device_put(part[number], where) for number in np.flatnonzero(part.any((1, 2))).tolist()}
            )
        return parts


class Tiles:
    """Turns the logits of images' windows into classes, and counts them, a tile at a time.

    Args:
        tiling: programs and sizes.
        patches: rows of them in a window.
    """

    def __init__(self, tiling: Tiling, patches: int):
        self._tiling, (height, width), k = tiling, tiling.shape, tiling.num_classes
        self._votes = jax.device_put(np.zeros((height, width, k), np.float32), tiling.rows)  # zero between tiles
        self._logits = jax.device_put(np.zeros((height, width, k), np.float32), tiling.rows)  # zero between views
        self._band = jax.device_put(np.zeros((patches, width, k), np.float32), tiling.everywhere)
        self._matrix = jax.device_put(np.zeros((k, k), np.int32), tiling.everywhere)
        self._total, self._pixels = np.zeros((k, k), np.int64), 0  # what was moved from there, and what is on it

    def predict(self, image: Image) -> Iterator[tuple[tuple[slice, slice], jax.Array]]:
        """Where in the image each tile lies, and its classes; what is outside the image means nothing."""
        cut = [(self._tiling.cut(view.rows, 0), self._tiling.cut(view.columns, 1)) for view in image.views]
        (height, width), (rows, columns) = self._tiling.shape, image.labels.shape
        for y, x in np.ndindex(-(-rows // height), -(-columns // width)):
            place = slice(y * height, (y + 1) * height), slice(x * width, (x + 1) * width)
            labels = self._placed(image.labels[place])
            for view, (down, across) in zip(image.views, cut, strict=True):
                predicted = self._add(view, down[y], across[x], labels, view is image.views[-1])
            yield place, predicted

    def _placed(self, labels: Int32[np.ndarray, "h w"]) -> jax.Array:
        """A tile of labels on the devices, where there is room to count it."""
        if self._pixels + labels.size > _FULL:
            self.matrix()
        self._pixels += labels.size
        missing = [(0, side - had) for side, had in zip(self._tiling.shape, labels.shape, strict=True)]
        return jax.device_put(np.pad(labels, missing, constant_values=PADDING), self._tiling.rows)

    def _add(
        self, view: View, down: dict[int, jax.Array], across: dict[int, jax.Array], labels: jax.Array, final: bool
    ) -> jax.Array:
        """A tile's classes after this view; `down` and `across` are what `Tiling.cut` gives for it."""
        for i, rows in down.items():
            for j, columns in across.items():
                masks, index = view.maps[i * len(view.columns) + j]
                first = np.bool_(j == min(across))
                band = self._tiling.add_window(self._band, masks, index, columns, first)
                self._band = sharding.in_turn(band, self._tiling.mesh)
            last = np.bool_(i == max(down))
            results = self._tiling.add_band(
                self._votes, self._logits, self._matrix, self._band, rows, labels, last, last & final
            )
            self._votes, self._logits, self._matrix, predicted = sharding.in_turn(results, self._tiling.mesh)
        return predicted

    def matrix(self) -> Int64[np.ndarray, "k k"]:
        """All that was counted; moves it from the devices."""
        self._total += np.asarray(self._matrix)
        self._matrix = jax.device_put(np.zeros(self._total.shape, np.int32), self._tiling.everywhere)
        self._pixels = 0
        return self._total
