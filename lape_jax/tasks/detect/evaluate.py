"""Detection in whole images of any size, by a few programs of fixed shapes.

An image is resized as `detect.test_short` and `detect.test_long` say, and put on one of at most `detect.test_canvases`
canvases (`lape_jax.tasks.detect.canvas`), each of which has a program. Boxes come back in pixels of the original image;
masks are drawn there, and encoded, by threads.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, Integer, UInt8

from lape_jax.data import ahead, rescale
from lape_jax.data.ahead import Ahead
from lape_jax.data.example import Source
from lape_jax.errors import UserError
from lape_jax.parallel import fit, hosts, sharding
from lape_jax.parallel.arrays import OwnDevices
from lape_jax.tasks.detect import bitmaps, canvas, inputs, pipeline, scores, transforms
from lape_jax.tasks.detect.canvas import Size
from lape_jax.tasks.detect.paste import paste
from lape_jax.tasks.detect.photo import Photo
from lape_jax.tasks.detect.pipeline import Whole
from lape_jax.tasks.detect.scores import Detection

_AHEAD = 2  # batches that the device has to do while the host draws masks


class Found(NamedTuple):
    """What was found in an image, in the order of classes, and of scores within them.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the image.
        masks: RLE of the image's size.
    """

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    masks: Sequence[dict]

    def detections(self, image: int) -> list[Detection]:
        """The same, one by one, of the image with this number."""
        boxes = [tuple(box) for box in self.boxes.tolist()]
        parts = zip(self.labels.tolist(), self.scores.tolist(), boxes, self.masks, strict=True)
        return [Detection(image, *part) for part in parts]


class PhotoEvaluator:
    """Finds objects in all images of a data set, or in others.

    Several processes share the images of the data set; each does its own on its own devices.

    Args:
        model: a Mask R-CNN, called with `train=False`.
        config: the config of the run; `eval_batch_size`, in images, is rounded up to what the devices divide.
        mesh: the mesh of devices that it runs on.
        source: the data set; may be None if only `find` is used.

    Attributes:
        scores: the scores that the last call computed.
        detections: the detections that the last call made.
        programs: how many canvases there were, each of which is compiled once.
    """

    def __init__(self, model: Any, config: Any, mesh: Mesh, source: Source[Photo] | None = None):
        self._config, self._source = config, source
        own = OwnDevices(mesh)
        self._mesh, self._own = own.mesh, own.copy
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._batch_size = math.ceil(config.eval_batch_size / shards) * shards
        self._rows = sharding.batch_sharding(self._mesh, self._batch_size, setting="eval_batch_size")
        detect = sharding.pin_batch(detections(fit.attention(model, self._mesh), config), self._mesh)
        self._detect = jax.jit(detect, out_shardings=sharding.replicated(self._mesh))
        self.programs = 0

    def __call__(self, variables: Any, prefix: str = "val/") -> dict[str, float]:
        """{prefix + metric: value}: the figures of `lape_jax.tasks.detect.scores` in percent, examples counted.

        Args:
            variables: all collections of the model's variables.
            prefix: what the names of metrics begin with.

        Raises:
            UserError: an example cannot be read, or there is no object in any; on all processes, whichever it was.
        """
        variables, failure, found = self._own(variables), None, {}
        try:
            found = dict(self._find_all(variables))
        except UserError as error:
            if jax.process_count() == 1:
                raise
            failure = error
        hosts.fail_together(failure)
        self.detections = _together(found, [self._source[index].number for index in range(len(self._source))])
        self.scores = scores.evaluate(self._source, self.detections, scores.kinds(self._config.detect.masks))
        figures = {f"{prefix}{name}": value for name, value in self.scores.figures.items()}
        return figures | {f"{prefix}examples": len(self._source)}

    def _find_all(self, variables: Any) -> Iterator[tuple[int, Found]]:
        """Index of each of this process's images of the data set, and what was found in it; canvas by canvas."""
        objects = [self._source[index].objects for index in range(len(self._source))]
        scale = pipeline.test_scale(self._config)
        sizes = [rescale.fit(one.height, one.width, scale) for one in objects]
        canvases = canvas.choose(sizes, self._config.detect.test_canvases)
        mine = range(jax.process_index(), len(objects), jax.process_count())
        mine = sorted(mine, key=lambda index: canvases[sizes[index]])
        originals = {index: (one.height, one.width) for index, one in enumerate(objects)}
        with pipeline.whole_photos(self._source, mine, self._config) as photos:
            yield from self._found(variables, photos, canvases.__getitem__, originals)

    def find(self, variables: Any, images: Iterable[UInt8[np.ndarray, "_h _w 3"]]) -> Iterator[Found]:
        """What is found in each image, in their order.

        Args:
            variables: all collections of the model's variables.
            images: taken as they are needed, a few ahead of what is given back.
        """
        scale = pipeline.test_scale(self._config)
        limits = canvas.padded((min(scale), max(scale))), canvas.padded((max(scale), min(scale)))
        most, originals = self._config.detect.test_canvases, {}

        def canvas_of(size: Size) -> Size:
            return limits[size[0] > size[1]] if most else canvas.padded(size)

        def photos() -> Iterator[Whole]:
            for index, pixels in enumerate(images):
                originals[index] = pixels.shape[:2]
                yield pipeline.whole(index, pixels, scale)

        for _, found in self._found(self._own(variables), photos(), canvas_of, originals):
            yield found

    def _found(
        self,
        variables: Any,
        photos: Iterable[Whole],
        canvas_of: Callable[[Size], Size],
        originals: Mapping[int, Size],
    ) -> Iterator[tuple[int, Found]]:
        """Index of each photo, and what was found in it, in their order."""
        used = set()

        def found() -> Iterator[tuple]:
            """The same with masks that are not drawn yet; the device is some batches ahead."""
            for group, result in ahead.before(begun(), _AHEAD):
                result = jax.device_get(result)
                for row, one in enumerate(group):
                    yield one.index, {name: array[row] for name, array in result.items()}, *originals[one.index]

        def begun() -> Iterator[tuple[Sequence[Whole], dict[str, jax.Array]]]:
            for own, group in _grouped(photos, canvas_of, self._batch_size):
                used.add(own)
                yield group, self._run(variables, group, own)

        with Ahead(lambda one: _drawn(*one), found(), self._config.data.threads, most=2 * self._batch_size) as drawn:
            yield from drawn
        self.programs = len(used)

    def _run(self, variables: Any, group: Sequence[Whole], own: Size) -> dict[str, jax.Array]:
        """The detections of a group of photos, of at most a batch, on one canvas."""
        count = self._batch_size
        images = np.zeros((count, *own, 3), np.uint8)
        sizes, ratios = np.ones((count, 2), np.int32), np.ones((count, 2), np.float32)
        for row, one in enumerate(group):
            images[row] = transforms.on_canvas(one.pixels, own)
            sizes[row], ratios[row] = one.pixels.shape[:2], one.ratios
        placed = (jax.device_put(array, self._rows) for array in (images, sizes, ratios))
        return sharding.in_turn(self._detect(variables, *placed), self._mesh)


def _grouped(
    photos: Iterable[Whole], canvas_of: Callable[[Size], Size], count: int
) -> Iterator[tuple[Size, list[Whole]]]:
    """Consecutive photos of one canvas, at most so many."""
    for own, group in itertools.groupby(photos, key=lambda one: canvas_of(one.pixels.shape[:2])):
        while part := list(itertools.islice(group, count)):
            yield own, part


def detections(model: Any, config: Any) -> Any:
    """The function (variables, images uint8 (b, h, w, 3), sizes (b, 2), ratios (b, 2)) -> detections.

    Ratios are those of the resized to the original images, down and across.
    """

    def detect(
        variables: Any, images: UInt8[Array, "b h w 3"], sizes: Integer[Array, "b 2"], ratios: Float[Array, "b 2"]
    ) -> dict[str, Array]:
        pixels = inputs.normalised(images, sizes, config.data.mean, config.data.std)
        return model.apply(variables, pixels, train=False, sizes=sizes, scale=ratios)[0]

    return detect


def _drawn(index: int, part: dict[str, np.ndarray], height: int, width: int) -> tuple[int, Found]:
    """The valid detections of an image, sorted by class, with their masks as RLE."""
    valid = np.flatnonzero(part["valid"])
    order = valid[np.argsort(part["labels"][valid], kind="stable")]
    boxes = part["boxes"][order].astype(np.float32)
    drawn = (paste(mask, box, height, width) for mask, box in zip(part["masks"][order], boxes, strict=True))
    found, labels = part["scores"][order].astype(np.float32), part["labels"][order].astype(np.int32)
    return index, Found(boxes, found, labels, [bitmaps.encode(mask) for mask in drawn])


def _together(found: Mapping[int, Found], numbers: Sequence[int]) -> list[Detection]:
    """The detections of all processes, in the order of the images."""
    own = {index: one.detections(numbers[index]) for index, one in found.items()}
    if jax.process_count() > 1:
        said = {index: [_said(one) for one in ones] for index, ones in own.items()}
        parts = [json.loads(text) for text in hosts.gather(json.dumps(said))]
        own = {int(index): [_heard(*one) for one in ones] for part in parts for index, ones in part.items()}
    return [one for index in sorted(own) for one in own[index]]


def _said(one: Detection) -> list:
    return [*one[:4], one.mask["size"], one.mask["counts"].decode()]


def _heard(image: int, label: int, score: float, box: list, size: list, counts: str) -> Detection:
    return Detection(image, label, score, tuple(box), {"size": size, "counts": counts.encode()})
