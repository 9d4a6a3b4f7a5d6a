"""The heads of Mask R-CNN (He et al. 2017, arXiv:1703.06870), which look at regions of maps.

Source: open-mmlab/mmdetection 2.22, `models/roi_heads/`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.convolution import Doubling, fan_out_normal
from lape_jax.nn.detection.anchors import STRIDES
from lape_jax.nn.detection.fpn import XAVIER
from lape_jax.nn.detection.roi_align import pooled

STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas of boxes, see `lape_jax.nn.detection.coder`
BOX_BINS, MASK_BINS = 7, 14  # rows and columns of a region's features
LEVELS = 4  # maps that regions are looked at in: the fifth is for proposals alone


class RegionHeads(nn.Module):
    """Class and box of a region, and its mask, of the features that `pooled` finds in the first four maps.

    Attributes:
        num_classes: k, without background, which is the last of the k + 1 logits.
        features: channels of the mask head.
        hidden: how many channels the box head has inside.
        dtype: type to compute in; what both heads give is float32 or better.
    """

    num_classes: int
    features: int = 256
    hidden: int = 1024
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.bbox_head = BoxHead(self.num_classes, self.hidden, self.dtype)
        self.mask_head = MaskHead(self.num_classes, self.features, self.dtype)

    def boxes(
        self, maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"]
    ) -> tuple[Float[Array, "b r k1"], Float[Array, "b r k 4"]]:
        """Logits of the classes of regions, and each class's deltas (of standard deviations `STDS`)."""
        return self.bbox_head(pooled(maps[:LEVELS], rois, STRIDES[:LEVELS], BOX_BINS))

    def masks(
        self, maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"]
    ) -> Float[Array, "b r 28 28 k"]:
        """Logits of the masks of regions, for each class."""
        return self.mask_head(pooled(maps[:LEVELS], rois, STRIDES[:LEVELS], MASK_BINS))


class BoxHead(nn.Module):
    """Two linear layers with ReLU, and one each for classes and boxes.

    Attributes: see `RegionHeads`.
    """

    num_classes: int
    hidden: int = 1024
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b r h w c"]) -> tuple[Float[Array, "b r k1"], Float[Array, "b r k 4"]]:
        x = x.reshape(*x.shape[:2], -1)
        for i in range(2):
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=XAVIER, name=f"shared_fcs_{i}")(x))
        full = jnp.promote_types(self.dtype, jnp.float32)

        def linear(features, std, name):
            init = nn.initializers.normal(std)
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)(x).astype(full)

        deltas = linear(4 * self.num_classes, 0.001, "fc_reg")
        return linear(self.num_classes + 1, 0.01, "fc_cls"), deltas.reshape(*x.shape[:2], self.num_classes, 4)


class MaskHead(nn.Module):
    """Four convolutions 3x3 with ReLU, a doubled map with ReLU, and a linear layer.

    Attributes: see `RegionHeads`.
    """

    num_classes: int
    features: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b r h w c"]) -> Float[Array, "b r 2*h 2*w k"]:
        batch, regions, *shape = x.shape
        x = x.reshape(batch * regions, *shape)
        kernel, init = (3, 3), fan_out_normal((3, 3), self.features)
        for i in range(4):
            convolution = nn.Conv(
                self.features, kernel, padding=1, dtype=self.dtype, kernel_init=init, name=f"convs_{i}"
            )
            x = nn.relu(convolution(x))
        x = nn.relu(Doubling(self.features, self.dtype, name="upsample")(x))
        init = fan_out_normal((1, 1), self.num_classes)
        x = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=init, name="conv_logits")(x)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        return x.reshape(batch, regions, *x.shape[1:])
