"""Compact Transformers (Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers").

ViT-Lite has patches and a class token, CVT patches and sequence pooling (`pool="seq"`), CCT convolutions and sequence
pooling. Source: SHI-Labs/Compact-Transformers, `src/utils/{transformers,tokenizer}.py` and `src/{vit,cvt,cct}.py`.
"""

from typing import ClassVar

import flax.linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.vit import ViT


class ViTLite(ViT):
    """ViT-Lite and CVT: ViTs for small images, which differ from DeiT's in the following.

    - Block: y = x + DropPath(Attention(join(norm1(x), pe))); z = norm2(y); x <- z + DropPath(Mlp(z)): the second
      LayerNorm lies on the residual stream. (The reference calls the two `pre_norm` and `norm1`.)
    - The qkv projection has no bias; LayerNorm's eps is 1e-5.
    - In training the attention weights drop out with probability 0.1, and stochastic depth rises to 0.1: what the
      reference's constructors set, whatever its command line says.
    - Initial values: position table N(0, 0.2^2), class token 0, patch kernel N(0, 2 / fan-in).

    Calling it, and the attributes, are those of `lape_jax.models.vit.ViT`.
    """

    image_size: int | tuple[int, int] = 32
    patch_size: int | tuple[int, int] = 4
    width: int = 256
    depth: int = 7
    heads: int = 4
    mlp_ratio: float = 2.0
    attn_dropout: float = 0.1
    drop_path: float = 0.1
    ln_eps: float = 1e-5

    inits: ClassVar = {
        "patch": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
        "token": nn.initializers.zeros,
        "table": nn.initializers.normal(0.2),
    }
    block_options: ClassVar = {"qkv_bias": False, "norm2_on_residual": True}


class CCT(ViTLite):
    """Compact Convolutional Transformer: a `ViTLite` whose tokens are made by convolutions.

    Each of the `conv_layers` is a convolution without bias, ReLU and max-pooling (3 x 3, stride 2), so that images of
    any size will do. CCT-7/3x1 is depth 7, `kernel_size` 3, `conv_layers` 1.

    Attributes beside those of `ViTLite`:
        kernel_size: k of the convolutions; their stride is max(1, k//2 - 1), their padding max(1, k//2).
        conv_layers: how many there are.
        conv_width: channels between them.
        patch_size: None, as there are no patches.
    """

    patch_size: int | tuple[int, int] | None = None
    pool: str = "seq"
    kernel_size: int = 3
    conv_layers: int = 1
    conv_width: int = 64

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        height, width = self.input_shape[:2]
        for _ in range(self.conv_layers):
            height, width = (halved(convolved(side, self.kernel_size)) for side in (height, width))
        return height, width

    def _check_patches(self) -> None:
        if self.patch_size is not None:
            raise UserError(
                f"patch_size={self.patch_size}: a CCT has no patches, its tokens are made by conv_layers of kernel_size"
            )
        self._check_positive("kernel_size", "conv_layers", "conv_width")

    def _patch_embed(self) -> nn.Module:
        widths = (*[self.conv_width] * (self.conv_layers - 1), self.width)
        return ConvTokenizer(widths, self.kernel_size, self.dtype, self.inits["patch"])


def convolved(side: int, kernel: int) -> int:
    """The side of an image of `side` pixels after a convolution of the tokenizer."""
    stride, padding = stride_and_padding(kernel)
    return (side + 2 * padding - kernel) // stride + 1


def halved(side: int) -> int:
    """The side after max-pooling over 3 pixels with stride 2 and padding 1."""
    return (side - 1) // 2 + 1


def stride_and_padding(kernel: int) -> tuple[int, int]:
    """Stride and padding of the tokenizer's convolutions; the padding is the same on all sides, unlike "SAME"."""
    return max(1, kernel // 2 - 1), max(1, kernel // 2)


class ConvTokenizer(nn.Module):
    """Tokens, row by row, from an image by layers of convolution, ReLU and max-pooling.

    Attributes:
        widths: channels after each layer, the last being those of a token.
        kernel_size: the kernel size of the convolutions, see `stride_and_padding`.
        dtype: type to compute in.
        kernel_init: how the kernels of the convolutions start; they have no bias.
    """

    widths: tuple[int, ...]
    kernel_size: int
    dtype: DTypeLike
    kernel_init: Initializer

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b n d"]:
        del train
        stride, padding = stride_and_padding(self.kernel_size)
        x = images
        for layer, width in enumerate(self.widths):
            x = nn.Conv(
                width,
                (self.kernel_size, self.kernel_size),
                stride,
                padding=2 * [(padding, padding)],
                use_bias=False,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                name=f"conv{layer}",
            )(x)
            x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), padding=2 * [(1, 1)])  # pads with -inf
        return x.reshape(x.shape[0], -1, self.widths[-1])
