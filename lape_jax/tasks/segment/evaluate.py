"""Segmentation of whole images, of any size, by three programs of fixed shapes.

1. Windows of several images, in batches, become logits of patches. With `segment.multiple` an image may be smaller than
   a window: it is its own window then, and each size of such windows has a program of its own for this, as they are
   exact only as they are. What they give is filled up with zeros, so that the other two programs fit.
2. An image is worked off in tiles of one size. What a window's patches contribute to a tile is a product with two
   matrices (see `sliding`), which upsamples, averages over windows, and resizes to the image at once. The products with
   the first of them add up to a band, over the windows side by side,
3. and those with the second to the tile's logits, over the bands. Their softmax is added up over the views of the image
   (scales, mirrored or not). The largest of these sums are the tile's classes, which are counted against its labels.

Windows are split over the devices by batch, and tiles by rows.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float32, Int32, Int64, UInt8

from lape_jax.data.example import Source
from lape_jax.data.rescale import fit, resize
from lape_jax.errors import UserError
from lape_jax.parallel import fit as fits
from lape_jax.parallel import hosts, sharding
from lape_jax.parallel.arrays import OwnDevices
from lape_jax.tasks.segment import limits, loss, sliding
from lape_jax.tasks.segment.pipeline import scenes
from lape_jax.tasks.segment.scene import PADDING, Scene
from lape_jax.tasks.segment.tiles import SIDE, Image, Tiles, Tiling, View
from lape_jax.tasks.segment.transforms import canvas_size

_AHEAD = 2  # batches of windows that the device has to do while the host makes more


class SceneEvaluator:
    """Segments all images of a data set, or others.

    Several processes share the images of the data set; each segments its own on its own devices.

    Args:
        model: with `out["masks"]`, called with `train=False`.
        config: the config of the run. `data.image_size` is the side of a window, `segment` has stride, multiple, scales
            and flip; `eval_batch_size`, in windows, is rounded up to what the devices divide.
        mesh: the mesh of devices that it runs on.
        source: the data set; may be None if only `maps` is used.

    Attributes:
        limits: how large and how narrow images may be.
        matrix: how many pixels of each class (row) were given each class (column), int64, by the last call.

    Raises:
        UserError: a stride that leaves gaps between the windows, or sides of windows that the model does not take.
    """

    def __init__(self, model: Any, config: Any, mesh: Mesh, source: Source[Scene] | None = None):
        self._model, self._config, self._source = model, config, source
        self._grid = model.grid_of((1, *model.input_shape))
        self._views = _Views(config, model)
        self.limits = limits.of(config, max(self._grid), model.num_classes)
        own = OwnDevices(mesh)
        self._mesh, self._own = own.mesh, own.copy
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._batch_size = math.ceil(config.eval_batch_size / shards) * shards
        self._rows = sharding.batch_sharding(self._mesh, self._batch_size, setting="eval_batch_size")
        logits = sharding.pin_batch(loss.patch_logits(fits.attention(model, self._mesh), config), self._mesh)
        self._logits = jax.jit(logits, out_shardings=sharding.replicated(self._mesh))
        side = min(SIDE, config.data.image_size)
        self._tiling = Tiling(self._mesh, (math.ceil(side / shards) * shards, side), model.num_classes)

    def __call__(self, variables: Any, prefix: str = "val/") -> dict[str, float]:
        """{prefix + metric: value}: miou, mean_accuracy and pixel_accuracy in percent, examples counted.

        Args:
            variables: all collections of the model's variables.
            prefix: what the names of metrics begin with.

        Raises:
            UserError: an example cannot be read or is too narrow, or none has a label; on all processes, whichever it
                was.
        """
        variables, failure = self._own(variables), None
        tiles = Tiles(self._tiling, self._grid[0])
        data, mine = self._config.data, range(jax.process_index(), len(self._source), jax.process_count())
        try:
            with scenes(self._source, mine, data.channels, data.threads, data.orientation) as read:
                for image in self._with_maps(variables, self._checked(read)):
                    for _ in tiles.predict(image):
                        pass
        except UserError as error:
            if jax.process_count() == 1:
                raise
            failure = error
        hosts.fail_together(failure)
        self.matrix = _sum_over_processes(tiles.matrix())
        if not self.matrix.any():
            raise UserError(
                f"not a pixel of the {len(self._source)} images has a label: there is nothing to evaluate by"
            )
        found = loss.scores(self.matrix)
        return {f"{prefix}{name}": found[name] for name in loss.METRICS} | {f"{prefix}examples": len(self._source)}

    def maps(
        self, variables: Any, images: Iterable[UInt8[np.ndarray, "_h _w c"]]
    ) -> Iterator[Int32[np.ndarray, "_h _w"]]:
        """The class of each pixel of each image, in their order.

        Args:
            variables: all collections of the model's variables.
            images: taken as they are needed, a few ahead of what is given back.

        Raises:
            UserError: one is too narrow.
        """
        tiles = Tiles(self._tiling, self._grid[0])

        def unlabelled() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for pixels in images:
                self.limits.check(*pixels.shape[:2])
                yield pixels, np.full(pixels.shape[:2], PADDING, np.int32)

        for image in self._with_maps(self._own(variables), unlabelled()):
            found = np.empty(image.labels.shape, np.int32)
            for place, predicted in tiles.predict(image):
                found[place] = np.asarray(predicted)[tuple(slice(side) for side in found[place].shape)]
            yield found

    def _checked(self, read: Iterable[tuple[np.ndarray, np.ndarray, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The scenes without their names, which stand in the error if one is too narrow."""
        for pixels, labels, name in read:
            try:
                self.limits.check(*labels.shape)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            yield pixels, labels

    def _with_maps(self, variables: Any, read: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Image]:
        """The images (pixels, labels) with the logits of all their windows."""
        waiting: deque[Image] = deque()
        pools: dict[tuple, list[tuple[np.ndarray, View]]] = {}  # windows without logits yet, by their size
        running: deque[jax.Array] = deque()

        def run(pool: list[tuple[np.ndarray, View]]) -> None:
            batch = np.zeros((self._batch_size, *pool[0][0].shape), np.uint8)
            for row, (window, _) in zip(batch, pool, strict=False):
                row[:] = window
            masks = sharding.in_turn(self._logits(variables, jax.device_put(batch, self._rows)), self._mesh)
            for index, (_, view) in enumerate(pool):
                view.maps.append((masks, np.int32(index)))
            pool.clear()
            running.append(masks)
            if len(running) > _AHEAD:
                jax.block_until_ready(running.popleft())

        for pixels, labels in read:
            found = list(self._views(pixels))
            waiting.append(Image(labels, [view for view, _ in found]))
            for view, windows in found:
                for window in windows:
                    pool = pools.setdefault(window.shape, [])
                    pool.append((window, view))
                    if len(pool) == self._batch_size:
                        run(pool)
            if len(waiting) == self._batch_size:  # one has a window of a rare size, perhaps: it is not waited for
                for pool in _holding(pools, waiting[0]):
                    run(pool)
            while waiting and waiting[0].complete:
                yield waiting.popleft()
        for pool in filter(None, pools.values()):
            run(pool)
        yield from waiting


def _holding(pools: dict[tuple, list[tuple[np.ndarray, View]]], image: Image) -> Iterator[list]:
    """The pools with windows of this image."""
    for pool in pools.values():
        if any(view is own for _, view in pool for own in image.views):
            yield pool


class _Views:
    """What an image is looked at as: at each scale, and perhaps mirrored. Source: rstrudel/segmenter.

    Args:
        config: the config of the run.
        model: that sees the windows.
    """

    def __init__(self, config: Any, model: Any):
        self._segment, self._window, self._model = config.segment, config.data.image_size, model
        self._grid = model.grid_of((1, *model.input_shape))
        # So that a wrong setting is said at once.
        sliding.anchors(self._window, self._window, self._segment.stride)
        if multiple := self._segment.multiple:
            try:
                model.check_images((1, multiple, multiple, config.data.channels))
            except UserError as error:
                raise UserError(f"config.segment.multiple is {multiple}, but {error}") from error

    def __call__(self, pixels: UInt8[np.ndarray, "h w c"]) -> Iterator[tuple[View, list[np.ndarray]]]:
        """Each view and its windows, row by row."""
        window, stride, multiple = self._window, self._segment.stride, self._segment.multiple
        for scale in self._segment.scales:
            limits = tuple(self._segment.scale)
            size = canvas_size(*pixels.shape[:2], limits, scale, window, multiple)
            # At a scale that is too small for a window it is the small image that is enlarged, or it would be no other
            # view of the image than scale 1 gives. (MMSegmentation shows its model the small image.)
            canvas = resize(resize(pixels, *fit(*pixels.shape[:2], limits, scale)), *size)
            patches = self._model.grid_of((1, *(min(side, window) for side in size), pixels.shape[-1]))
            rows, columns = (
                _filled(sliding.weights(length, side, window, stride, count), full)
                for length, side, count, full in zip(pixels.shape, size, patches, self._grid, strict=False)
            )
            yield View(rows, columns), sliding.windows(canvas, window, stride)
            if self._segment.flip:
                yield View(rows, columns[:, ::-1]), sliding.windows(canvas[:, ::-1], window, stride)


def _filled(weights: Float32[np.ndarray, "n l p"], patches: int) -> Float32[np.ndarray, "n l {patches}"]:
    """`weights` with as many patches as a window of full size has."""
    return np.pad(weights, ((0, 0), (0, 0), (0, patches - weights.shape[-1])))


def _sum_over_processes(matrix: Int64[np.ndarray, "k k"]) -> Int64[np.ndarray, "k k"]:
    if jax.process_count() == 1:
        return matrix
    halves = multihost_utils.process_allgather(matrix.view(np.uint32))  # JAX has no 64 bits here
    return np.ascontiguousarray(halves).view(np.int64).sum(axis=0)
