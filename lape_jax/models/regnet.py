"""RegNetY (Radosavovic et al. 2020, "Designing Network Design Spaces"), for inference: DeiT's teacher."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.nn.batch_norm import BatchNorm

QUANTUM = 8  # widths are multiples of it, until they are fitted to the groups


class RegNet(nn.Module):
    """RegNetY with fixed batch statistics.

    A 3x3 convolution of stride 2, then stages of residual blocks whose width grows, the first block of each with stride
    2; mean over all pixels; linear head. Block j = 0, 1, ... has the width w0 wm^s, s = round(log_wm(1 + wa j / w0)),
    rounded to a multiple of 8; blocks of one width make a stage. The width is then rounded to a multiple of the group
    width, or the group width taken down to it.

    Calling it maps images (batch, height, width, channels), normalised, to `(logits, out)`; `out` names what lies
    between: "stem", "s1", "s2", ... (after each stage) and "pre_logits". It cannot be trained: each BatchNorm uses the
    running mean and variance that it has.

    Attributes:
        num_classes: outputs of the head.
        image_size: pixels, one number or (height, width).
        in_channels: channels of the images.
        w0, wa, wm, depth: initial width, slope, multiplier and number of blocks, see above.
        group_width: channels of a group in the 3x3 convolutions.
        se_ratio: squeezed channels of a block over its *input's*.
        stem_width: channels of the first convolution.
        dtype: type to compute in; BatchNorm and logits at least float32.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_channels: int = 3
    w0: int = 200
    wa: float = 106.23
    wm: float = 2.48
    depth: int = 18
    group_width: int = 112
    se_ratio: float = 0.25
    stem_width: int = 32
    dtype: DTypeLike = jnp.float32

    answers: ClassVar[str] = "image"  # what it gives a class to each of

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        sides = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return (*sides, self.in_channels)

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """Width, group width and number of blocks of each stage."""
        exponents = np.round(np.log1p(self.wa * np.arange(self.depth) / self.w0) / np.log(self.wm))
        widths = np.round(self.w0 * self.wm**exponents / QUANTUM).astype(int) * QUANTUM
        stages = []
        for width, depth in zip(*np.unique(widths, return_counts=True), strict=True):
            group = min(self.group_width, int(width))
            stages.append((round(int(width) / group) * group, group, int(depth)))
        return stages

    def check(self) -> None:
        """Raises UserError if the settings describe no network."""
        for field in ("num_classes", "in_channels", "w0", "depth", "group_width", "stem_width", "se_ratio"):
            if not getattr(self, field) > 0:
                raise UserError(f"{field}={getattr(self, field)} is not positive")
        if min(self.input_shape) < 1:
            raise UserError(f"image_size={self.image_size} is not positive")
        if self.w0 % QUANTUM:
            raise UserError(f"w0={self.w0} is not a multiple of {QUANTUM}")
        if self.wa < 0:
            raise UserError(f"wa={self.wa} is negative, and widths grow with depth")
        if not self.wm > 1:
            raise UserError(f"wm={self.wm} is not above 1, and widths grow by this factor")
        narrowest = min(self.stem_width, self.stages[0][0])
        if round(narrowest * self.se_ratio) < 1:
            raise UserError(f"se_ratio={self.se_ratio} leaves no channel of {narrowest}")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Float[Array, "b k"], dict]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: the images do not have the model's `input_shape`, or it is called for training.
        """
        self.check()
        if train:
            raise UserError("RegNet is here for inference, as a teacher: it cannot be trained")
        if images.shape[1:] != self.input_shape:
            raise UserError(f"the model takes images of shape {self.input_shape}, not {images.shape[1:]}")
        full = jnp.promote_types(self.dtype, jnp.float32)
        x = images.astype(self.dtype)
        out = {"stem": (x := nn.relu(ConvBN(self.stem_width, 3, stride=2, dtype=self.dtype, name="stem")(x)))}
        for i, (width, group, depth) in enumerate(self.stages, 1):
            out[f"s{i}"] = x = Stage(width, group, depth, self.se_ratio, self.dtype, name=f"s{i}")(x)
        out["pre_logits"] = x = jnp.mean(x, axis=(1, 2), dtype=full)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return logits.astype(full), out

    def param_shapes(self) -> dict:
        """Shapes and types of the parameters, as a tree of `jax.ShapeDtypeStruct`, without computing anything."""
        return self.variable_shapes()["params"]

    def variable_shapes(self) -> dict:
        """The same of all variables: "params", and "batch_stats" with the BatchNorms' means and variances."""
        images = jax.ShapeDtypeStruct((1, *self.input_shape), self.dtype)
        return jax.eval_shape(self.init, jax.random.key(0), images)


class Stage(nn.Module):
    """`depth` blocks of one width, the first of them with stride 2."""

    width: int
    group: int
    depth: int
    se_ratio: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for i in range(self.depth):
            stride = 1 if i else 2
            x = Block(self.width, self.group, stride, self.se_ratio, self.dtype, name=f"b{i + 1}")(x)
        return x


class Block(nn.Module):
    """relu(shortcut + conv3(squeeze_excite(relu(conv2(relu(conv1(x))))))), each convolution with its BatchNorm.

    conv1 and conv3 are 1x1, conv2 is 3x3 in groups and has the stride. The shortcut is x, or a 1x1 convolution with
    BatchNorm where stride or width forbid that.
    """

    width: int
    group: int
    stride: int
    se_ratio: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        squeezed = round(x.shape[-1] * self.se_ratio)
        groups = self.width // self.group
        y = nn.relu(ConvBN(self.width, 1, dtype=self.dtype, name="conv1")(x))
        y = nn.relu(ConvBN(self.width, 3, self.stride, groups, dtype=self.dtype, name="conv2")(y))
        y = SqueezeExcite(squeezed, self.dtype, name="se")(y)
        y = ConvBN(self.width, 1, dtype=self.dtype, name="conv3")(y)
        if self.stride > 1 or x.shape[-1] != self.width:
            x = ConvBN(self.width, 1, self.stride, dtype=self.dtype, name="downsample")(x)
        return nn.relu(x + y)


class SqueezeExcite(nn.Module):
    """x * sigmoid(fc2(relu(fc1(mean of x over all pixels)))) (Hu et al. 2018)."""

    squeezed: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.promote_types(self.dtype, jnp.float32))
        # 1x1 convolutions, so that the kernels have the axes of PyTorch's.
        z = nn.relu(nn.Conv(self.squeezed, (1, 1), dtype=self.dtype, name="fc1")(mean))
        return x * nn.sigmoid(nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="fc2")(z))


class ConvBN(nn.Module):
    """A convolution without bias, padded by (kernel - 1) / 2 on all sides, and BatchNorm by its running statistics."""

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            padding=self.kernel // 2,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        return BatchNorm(self.dtype, name="bn")(y, train=False)
