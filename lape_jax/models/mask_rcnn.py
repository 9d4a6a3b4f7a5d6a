"""Mask R-CNN (He et al. 2017, "Mask R-CNN", arXiv:1703.06870)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.nn.detection import anchors
from lape_jax.nn.detection.coder import decode
from lape_jax.nn.detection.fpn import Pyramid
from lape_jax.nn.detection.heads import STDS, RegionHeads
from lape_jax.nn.detection.nms import best_of_classes
from lape_jax.nn.detection.rpn import ProposalHead, Rule, propose


class MaskRCNN(ViTAdapter):
    """A ViT-Adapter in whose maps objects are found: their boxes, classes and masks.

    Calling it maps images (batch, height, width, channels), normalised and of any height and width that are multiples
    of 32, to `(detections, out)`, of which there are a fixed number, best first:

        "boxes" (batch, detections, 4): x1, y1, x2, y2 in pixels of the images given;
        "scores", "labels" (batch, detections): probability of the class, and its number;
        "masks" (batch, detections, 28, 28): probabilities that a part of the box belongs to the object;
        "valid" (batch, detections): whether there is a detection; all else of those that are none is 0.

    `out` has what a ViT-Adapter's has, and "maps", its four maps; "fpn", the five of the pyramid; "rpn_logits" (five of
    (batch, rows, columns, 3)) and "rpn_deltas" (12 instead of 3), see `ProposalHead`; "proposals", see `propose`.

    Proposals are made of scores and deltas without a gradient. In training they are made of more candidates, and there
    are no detections, but None: what is sampled of proposals and objects then goes through `box_head` and `mask_head`.

    Attributes beside those of `lape_jax.models.vit_adapter.ViTAdapter`:
        num_classes: k, without background.
        channels: how many channels the pyramid's maps have, and the layers of the RPN and of the mask head.
        hidden: channels of the box head.
        pre_nms_train, pre_nms_test: candidates from each map, in training and otherwise.
        rpn_nms_threshold: IoU above which a proposal suppresses a worse one of the same map.
        proposals: how many, of all maps together.
        score_threshold: what the score of a detection is greater than.
        nms_threshold: IoU above which a detection suppresses a worse one of the same class.
        detections: how many, of all classes together.

    Source: czczup/ViT-Adapter, `detection/configs/_base_/models/mask_rcnn_r50_fpn.py`; open-mmlab/mmdetection 2.22.
    """

    num_classes: int = 80
    channels: int = 256
    hidden: int = 1024
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    rpn_nms_threshold: float = 0.7
    proposals: int = 1000
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections: int = 100

    answers: ClassVar = "box"

    def _check_sizes(self) -> None:
        self._check_positive("channels", "hidden", "pre_nms_train", "pre_nms_test", "proposals", "detections")
        super()._check_sizes()

    def _check_numbers(self) -> None:
        super()._check_numbers()
        self._check_rates("rpn_nms_threshold", "score_threshold", "nms_threshold")

    def setup(self):
        super().setup()
        self.neck = Pyramid(self.channels, self.dtype)
        self.rpn_head = ProposalHead(self.channels, self.dtype)
        self.roi_head = RegionHeads(self.num_classes, self.channels, self.hidden, self.dtype)

    def anchors(self, height: int, width: int) -> list[Float[np.ndarray, "_h _w 3 4"]]:
        """The anchors of the five maps of images of this size, see `lape_jax.nn.detection.anchors`."""
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        shapes = zip(anchors.sizes(height, width), anchors.STRIDES, strict=True)
        return [anchors.anchors(*shape, stride, dtype) for shape, stride in shapes]

    def box_head(
        self, fpn: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"]
    ) -> tuple[Float[Array, "b r k1"], Float[Array, "b r k 4"]]:
        """Logits (background last) and deltas of regions, in pixels of the images: `apply(..., method="box_head")`."""
        return self.roi_head.boxes(fpn, rois)

    def mask_head(
        self, fpn: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"]
    ) -> Float[Array, "b r 28 28 k"]:
        """Logits of masks of regions, in pixels of the images, for each class: `apply(..., method="mask_head")`."""
        return self.roi_head.masks(fpn, rois)

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        train: bool = False,
        sizes: Shaped[Array, "b 2"] | None = None,
        scale: Float[Array, "b 2"] | None = None,
    ) -> tuple[dict[str, jax.Array] | None, dict[str, Any]]:
        """Detections, or None in training, and the named intermediates; see the class.

        Args:
            images: what is beyond their `sizes` should be 0; it is seen.
            train: whether this is training.
            sizes: height and width of the part of each that is image, from the upper left corner: boxes are cut there.
                All of it, if not given.
            scale: height and width of what is image to those of an original that it was resized from. Boxes are then
                in pixels of the original, in which they are also suppressed, as the official code does it; for the
                masks they are multiplied by `scale` again.

        Raises:
            UserError: as a ViT-Adapter.
        """
        maps, out = super().__call__(images, train)
        batch, height, width, _ = images.shape
        full = jnp.promote_types(self.dtype, jnp.float32)
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.asarray([height, width], full), (batch, 2))
        out["maps"] = maps
        out["fpn"] = fpn = self.neck(maps)
        logits, deltas = self.rpn_head(fpn)
        out |= {"rpn_logits": logits, "rpn_deltas": deltas}
        rule = Rule(self.pre_nms_train if train else self.pre_nms_test, self.rpn_nms_threshold, self.proposals)
        fixed = jax.lax.stop_gradient((logits, deltas))
        out["proposals"] = propose(*fixed, self.anchors(height, width), sizes, rule)
        if train and not self.is_initializing():
            return None, out
        return self.detect(fpn, out["proposals"], sizes, scale), out

    def detect(
        self,
        fpn: Sequence[Float[Array, "b _h _w c"]],
        proposals: dict[str, jax.Array],
        sizes: Shaped[Array, "b 2"],
        scale: Float[Array, "b 2"] | None = None,
    ) -> dict[str, jax.Array]:
        """Detections of images whose pyramid and proposals these are: `apply(..., method="detect")`, see `__call__`."""
        logits, deltas = self.box_head(fpn, proposals["boxes"])
        scores = jnp.where(proposals["valid"][..., None], jax.nn.softmax(logits)[..., :-1], 0)
        boxes = decode(proposals["boxes"][:, :, None], deltas, STDS, sizes)
        factor = jnp.ones((boxes.shape[0], 1), boxes.dtype) if scale is None else jnp.tile(scale[:, ::-1], 2)
        boxes = boxes / factor[:, None, None]
        region, labels, scores = best_of_classes(
            boxes, scores, self.nms_threshold, self.score_threshold, self.detections
        )
        boxes = jax.vmap(lambda boxes, *place: boxes[place])(boxes, region, labels)
        masks = self.mask_head(fpn, boxes * factor[:, None])
        masks = jax.nn.sigmoid(jnp.take_along_axis(masks, labels[:, :, None, None, None], axis=-1)[..., 0])
        valid = scores > -jnp.inf
        found = {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}
        found = {name: jnp.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, 0) for name, x in found.items()}
        return {**found, "valid": valid}
