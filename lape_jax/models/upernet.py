"""UperNet (Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding", arXiv:1807.10221)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float64

from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.nn.convolution import ConvNormReLU
from lape_jax.nn.resize import resize_maps

BINS = (1, 2, 3, 6)  # rows and columns that the last map is pooled to
MASK_STRIDE = 4


class UperNet(ViTAdapter):
    """A ViT-Adapter whose four maps a pyramid of convolutions turns into a map of logits for each class.

    Calling it maps images (batch, height, width, channels), normalised and of any height and width that are multiples
    of 32, to `(logits, out)` with logits (batch, height, width, num_classes). `out` has what a ViT-Adapter's has, and
    "maps", its four maps; "masks", the logits at a quarter of the size, which are interpolated (bilinear) to the
    logits; "aux", logits at a sixteenth that `AuxiliaryHead` makes of the third map, for a second loss.

    Attributes beside those of `lape_jax.models.vit_adapter.ViTAdapter`:
        num_classes: k.
        image_size: size of the images that it is meant for: the crops of training and the windows of evaluation.
        table_size: size of the images that the position tables are learned for.
        channels: how many channels the pyramid's maps have.
        aux_channels: how many channels the auxiliary head has inside.
        head_dropout: rate at which both heads, in training, drop whole channels before their last layer.

    Source: open-mmlab/mmsegmentation 0.20.2, `uper_head.py`, `psp_head.py`, `fcn_head.py`; czczup/ViT-Adapter,
    `segmentation/configs/_base_/models/upernet_r50.py`.
    """

    num_classes: int = 150
    image_size: int | tuple[int, int] = 512
    table_size: int | tuple[int, int] = 224
    variant: str = "segmentation"
    channels: int = 512
    aux_channels: int = 256
    head_dropout: float = 0.1

    answers: ClassVar = "pixel"
    least_batch: ClassVar = 2

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the position tables are learned for."""
        height, width = pair(self.table_size)
        return height // 16, width // 16

    def _check_sizes(self) -> None:
        self._check_positive("channels", "aux_channels", "table_size")
        super()._check_sizes()

    def _check_patches(self) -> None:
        super()._check_patches()
        if any(side % 16 for side in pair(self.table_size)):
            raise UserError(f"table_size={self.table_size} is not divisible by patch_size=16")

    def _check_numbers(self) -> None:
        super()._check_numbers()
        self._check_rates("head_dropout")

    def grid_of(self, shape: tuple) -> tuple[int, int]:
        """Rows and columns of "masks" for images of this shape (batch, height, width, channels)."""
        return shape[1] // MASK_STRIDE, shape[2] // MASK_STRIDE

    def setup(self):
        super().setup()
        options = {"dropout": self.head_dropout, "dtype": self.dtype}
        self.decode_head = PyramidHead(self.num_classes, self.channels, **options)
        self.auxiliary_head = AuxiliaryHead(self.num_classes, self.aux_channels, **options)

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Any]]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: as a ViT-Adapter; or there is one image in training, where the coarsest map has one pixel, and
                its BatchNorm would leave nothing of it.
        """
        if train and images.shape[0] < self.least_batch and not self.is_initializing():
            raise UserError("a UperNet is trained on at least two images at a time, as its coarsest map has one pixel")
        maps, out = super().__call__(images, train)
        out["maps"] = maps
        out["masks"] = self.decode_head(maps, train)
        out["aux"] = self.auxiliary_head(maps[2], train)
        return resize_maps(out["masks"], images.shape[1:3], "bilinear"), out


class PyramidHead(nn.Module):
    """Logits at the stride of the first of four maps, each with half the rows and columns of the one before.

    With f_1 .. f_4 the maps, C a `ConvNormReLU` of its own in each place, and "up" bilinear interpolation:

        p_4 = C_3x3([f_4; up(C_1x1(pool_s(f_4))) for s in 1, 2, 3, 6]);  p_i = C_1x1(f_i) + up(p_(i+1)) for i = 3, 2, 1
        logits = linear(dropout(C_3x3([C_3x3(p_1); up(C_3x3(p_2)); up(C_3x3(p_3)); up(p_4)])))

    Attributes:
        num_classes: k.
        channels: how many channels all maps in between have.
        dropout: rate, of whole channels.
        dtype: type to compute in.
    """

    num_classes: int
    channels: int = 512
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _h _w c"]], train: bool) -> Float[Array, "b h w k"]:
        """Logits, float32 or better, of the pixels of the first map."""
        *lower, last = maps

        def convolve(x, name, kernel):
            return ConvNormReLU(self.channels, kernel, dtype=self.dtype, name=name)(x, train)

        pooled = [convolve(adaptive_pool(last, bins), f"psp_modules_{i}", 1) for i, bins in enumerate(BINS)]
        pooled = [resize_maps(x, last.shape[1:3], "bilinear") for x in pooled]
        path = [convolve(jnp.concatenate([last, *pooled], axis=-1), "bottleneck", 3)]
        laterals = [convolve(map_, f"lateral_convs_{i}", 1) for i, map_ in enumerate(lower)]
        for lateral in reversed(laterals):
            path.insert(0, lateral + resize_maps(path[0], lateral.shape[1:3], "bilinear"))
        parts = [convolve(x, f"fpn_convs_{i}", 3) for i, x in enumerate(path[:-1])] + path[-1:]
        parts = [parts[0], *(resize_maps(x, parts[0].shape[1:3], "bilinear") for x in parts[1:])]
        y = convolve(jnp.concatenate(parts, axis=-1), "fpn_bottleneck", 3)
        return _classify(y, self.num_classes, self.dropout, train)


class AuxiliaryHead(nn.Module):
    """linear(dropout(C_3x3(map))), see `PyramidHead`.

    Attributes: see `PyramidHead`.
    """

    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        """Logits, float32 or better."""
        y = ConvNormReLU(self.channels, dtype=self.dtype, name="convs_0")(x, train)
        return _classify(y, self.num_classes, self.dropout, train)


def _classify(x: Float[Array, "b h w c"], num_classes: int, dropout: float, train: bool) -> Float[Array, "b h w k"]:
    """Called within a head: drops whole channels of an image, and then a linear layer, N(0, 0.01^2) at first."""
    x = nn.Dropout(dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
    linear = nn.Dense(num_classes, dtype=x.dtype, kernel_init=nn.initializers.normal(0.01), name="conv_seg")
    return linear(x).astype(jnp.promote_types(x.dtype, jnp.float32))


def adaptive_pool(x: Float[Array, "b h w c"], bins: int) -> Float[Array, "b {bins} {bins} c"]:
    """Means of rectangles: `bins` x `bins` of them, which overlap where that does not divide rows or columns.

    Bin i has the rows floor(i h / bins) to ceil((i + 1) h / bins) - 1, at least one, whether there are more rows or
    more bins; columns likewise. The mean is that over rows of those over columns.
    """
    down, across = (jnp.asarray(_shares(size, bins), jnp.promote_types(x.dtype, jnp.float32)) for size in x.shape[1:3])
    product = {"precision": lax.Precision.HIGHEST}  # a TPU's default is bfloat16
    columns = jnp.einsum("jw,bhwc->bhjc", across, x, **product)
    return jnp.einsum("ih,bhjc->bijc", down, columns, **product).astype(x.dtype)


def _shares(size: int, bins: int) -> Float64[np.ndarray, "bins size"]:
    first = np.arange(bins)[:, None] * size // bins
    end = -(-(np.arange(bins)[:, None] + 1) * size // bins)
    inside = (np.arange(size) >= first) & (np.arange(size) < end)
    return inside / inside.sum(axis=1, keepdims=True)
