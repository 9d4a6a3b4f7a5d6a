"""What ViT-Adapter puts beside a Vision Transformer: maps at strides 4 to 32 that a ViT and they tell each other of.

Source: Chen et al. 2023, "Vision Transformer Adapter for Dense Predictions" (arXiv:2205.08534), section 3;
czczup/ViT-Adapter, `detection/mmdet_custom/models/backbones/adapter_modules.py`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.convolution import ConvNormReLU, fan_out_normal
from lape_jax.nn.deformable import DeformableAttention, Shape, centres
from lape_jax.nn.encoder import with_remat
from lape_jax.nn.layers import GELUS, drop_path, layer_norm, normal_02


def pyramid(grid: Shape) -> tuple[Shape, Shape, Shape]:
    """Rows and columns at strides 8, 16 and 32, for those of patches of 16 pixels."""
    rows, columns = grid
    return (2 * rows, 2 * columns), grid, (rows // 2, columns // 2)


def as_maps(tokens: Float[Array, "b m d"], grid: Shape) -> list[Float[Array, "b h w d"]]:
    """The three maps of a `pyramid` whose pixels are the tokens, one map after the other."""
    sizes = [rows * columns for rows, columns in pyramid(grid)]
    parts = jnp.split(tokens, np.cumsum(sizes)[:-1].tolist(), axis=1)
    return [part.reshape(tokens.shape[0], *shape, -1) for part, shape in zip(parts, pyramid(grid), strict=True)]


def as_tokens(maps: list[Float[Array, "b _h _w d"]]) -> Float[Array, "b m d"]:
    """The inverse of `as_maps`."""
    return jnp.concatenate([m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps], axis=1)


class SpatialPrior(nn.Module):
    """Maps at strides 4, 8, 16 and 32 of an image, by convolutions: a ResNet's stem, and what follows from it.

    Three convolutions 3x3, the first of stride 2, and max-pooling 3x3 of stride 2 (padded with -inf) lead to stride 4,
    and a convolution of stride 2 from each map to the next; each is followed by BatchNorm and ReLU. Another layer,
    linear in each pixel, makes `features` of a map's channels, of which there are `width`, 2, 4 and 4 times as many.

    Attributes:
        width: see above.
        features: see above.
        dtype: type to compute in.
    """

    width: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> list[Float[Array, "b _h _w d"]]:
        x = images.astype(self.dtype)
        for index, stride in enumerate((2, 1, 1)):
            x = ConvNormReLU(self.width, stride=stride, dtype=self.dtype, name=f"stem_{index}")(x, train)
        maps = [nn.max_pool(x, (3, 3), (2, 2), padding=2 * [(1, 1)])]
        for number, factor in ((2, 2), (3, 4), (4, 4)):
            block = ConvNormReLU(factor * self.width, stride=2, dtype=self.dtype, name=f"conv{number}")
            maps.append(block(maps[-1], train))
        init = fan_out_normal((1, 1), self.features)
        linear = [nn.Dense(self.features, dtype=self.dtype, kernel_init=init, name=f"fc{i}") for i in (1, 2, 3, 4)]
        return [layer(map_) for layer, map_ in zip(linear, maps, strict=True)]


class Injector(nn.Module):
    """x + gamma * attention(LN(x) -> LN(c)): tokens x read from all three maps c; gamma (d,) starts at 0.

    Attributes:
        heads, points: see `DeformableAttention`.
        ln_eps: epsilon of the LayerNorms.
        dtype: type to compute in.
    """

    heads: int
    points: int
    ln_eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Float[Array, "b m d"], grid: Shape) -> Float[Array, "b n d"]:
        query, values = (layer_norm(self.ln_eps, self.dtype, f"{n}_norm")(t) for n, t in (("query", x), ("feat", c)))
        attention = DeformableAttention(self.heads, self.points, self.dtype, name="attn")
        y = checkpoint_name(attention(query, centres(grid), values, pyramid(grid)), "attended")
        gamma = self.param("gamma", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return x + gamma.astype(y.dtype) * y


class Extractor(nn.Module):
    """c <- c + attention(LN(c) -> LN(x));  c <- c + DropPath(ConvFFN(LN(c))): the three maps c read from the tokens x.

    Attributes:
        heads, points: see `DeformableAttention`.
        hidden: channels within the `ConvFFN`.
        drop_path: rate.
        ln_eps: epsilon of the LayerNorms.
        gelu: which form of GELU, one of `lape_jax.nn.layers.GELUS`.
        dtype: type to compute in.
    """

    heads: int
    points: int
    hidden: int
    drop_path: float
    ln_eps: float
    gelu: str = "erf"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, c: Float[Array, "b m d"], x: Float[Array, "b n d"], grid: Shape, train: bool
    ) -> Float[Array, "b m d"]:
        query, values = (layer_norm(self.ln_eps, self.dtype, f"{n}_norm")(t) for n, t in (("query", c), ("feat", x)))
        places = np.concatenate([centres(shape) for shape in pyramid(grid)])
        attention = DeformableAttention(self.heads, self.points, self.dtype, name="attn")
        c = c + checkpoint_name(attention(query, places, values, [grid]), "attended")
        y = layer_norm(self.ln_eps, self.dtype, "ffn_norm")(c)
        y = ConvFFN(self.hidden, self.gelu, self.dtype, name="ffn")(y, grid)
        if train and self.drop_path:
            y = drop_path(y, jnp.asarray(self.drop_path, jnp.float32), self.make_rng("dropout"))
        return c + y


class ConvFFN(nn.Module):
    """fc2(gelu(dwconv(fc1(c)))), with a depth-wise convolution 3x3, biased, a border of zeros around each of the maps.

    Attributes: see `Extractor`.
    """

    hidden: int
    gelu: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, c: Float[Array, "b m d"], grid: Shape) -> Float[Array, "b m d"]:
        dense = {"dtype": self.dtype, "kernel_init": normal_02}
        y = checkpoint_name(nn.Dense(self.hidden, name="fc1", **dense)(c), "fc1")
        convolution = nn.Conv(
            self.hidden,
            (3, 3),
            padding=1,
            feature_group_count=self.hidden,
            dtype=self.dtype,
            kernel_init=fan_out_normal((3, 3), 1),
            name="dwconv",
        )
        y = as_tokens([convolution(map_) for map_ in as_maps(y, grid)])
        return nn.Dense(c.shape[-1], name="fc2", **dense)(GELUS[self.gelu](y))


class Interaction(nn.Module):
    """An injector before some of the ViT's blocks, and an extractor, or several in turn, behind them.

    Attributes:
        options: arguments of `Extractor`, some of which are those of `Injector`, too.
        extra: extractors after the first.
        remat: what the backward pass may keep of each of them, one of `lape_jax.nn.encoder.REMAT_POLICIES`.
    """

    options: Mapping[str, Any]
    extra: int = 0
    remat: str = "auto"

    def setup(self):
        shared = {name: self.options[name] for name in ("heads", "points", "ln_eps", "dtype")}
        self.injector = with_remat(Injector, self.remat, static_argnums=(3,))(**shared)
        extractor = with_remat(Extractor, self.remat, static_argnums=(3, 4))
        self.extractor = extractor(**self.options)
        self.extra_extractors = [extractor(**self.options) for _ in range(self.extra)]

    def inject(self, x: Float[Array, "b n d"], c: Float[Array, "b m d"], grid: Shape) -> Float[Array, "b n d"]:
        """The tokens as the blocks get them."""
        return self.injector(x, c, grid)

    def extract(
        self, c: Float[Array, "b m d"], x: Float[Array, "b n d"], grid: Shape, train: bool
    ) -> Float[Array, "b m d"]:
        """The maps as the next interaction gets them."""
        for extractor in (self.extractor, *self.extra_extractors):
            c = extractor(c, x, grid, train)
        return c
