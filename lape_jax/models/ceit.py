"""CeiT (Yuan et al. 2021, "Incorporating Convolution Designs into Visual Transformers", arXiv:2103.11816)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.models.vit import ViT
from lape_jax.nn.batch_norm import BatchNorm
from lape_jax.nn.block_options import BlockOptions
from lape_jax.nn.encoder import Block, Carry, LayerInputs
from lape_jax.nn.layers import GELUS, PatchEmbed, torch_uniform

STEM_STRIDE = 4  # of convolution and pooling before the patches are cut


class CeiT(ViT):
    """A ViT with convolutions, which differs from DeiT's in the following.

    - Tokens: `ImageToTokens`, a convolution with BatchNorm and pooling before the patches are cut.
    - Block: in place of the MLP there is `LeFF`, which has a 3x3 convolution between its layers.
    - Output: the class tokens after each of the blocks, plus `pos_layer_embed`, are a sequence of `depth` tokens. It
      goes through one more block with an MLP, `lca` ("layer-wise class token attention"); the head sees the last one.

    LaPE acts in the `depth` blocks alone: `lca`, whose tokens are layers and not places, has no PE norm. That is one
    PE norm a block, 4,608 parameters more for CeiT-T, which agrees with the counts that are published for it (6.356M ->
    6.361M in MPVG, arXiv:2502.02919), though these are too coarse to rule out one in `lca`.

    BatchNorms (collection "batch_stats") see all images of a batch, where the reference's see those of one GPU. Their
    float32 arithmetic holds for every `dtype`.

    Calling it, and the attributes, are those of `lape_jax.models.vit.ViT`, with these differences:
        stem_width: channels of the convolution before the patches.
        patch_size: pixels of the image, a multiple of 4: patches of a quarter of it are cut from the convolution's map.
        pool, distilled: "token" and False; other ways to read the tokens are not defined.
        dropout: acts on the embedded tokens, after attention and in the MLP of `lca`; not in `LeFF`.
        drop_path: stochastic depth rate of the blocks; `lca` has none.
        out: also "class_tokens", the class tokens after each block (layer axis first), and "encoded" and "pre_logits"
            are what leaves `lca` and the final LayerNorm, (b, depth, d) and its last row.

    Source: coeusguo/ceit, `ceit_model.py`.
    """

    stem_width: int = 64

    pools: ClassVar = ("token",)

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        if self.distilled:
            raise UserError("distilled=True: a CeiT reads the class tokens of all layers and has no distillation token")
        super().check()

    def _check_patches(self) -> None:
        self._check_positive("stem_width")
        super()._check_patches()
        if any(side % STEM_STRIDE for side in pair(self.patch_size)):
            raise UserError(f"patch_size={self.patch_size} is not divisible by {STEM_STRIDE}, the stride of the stem")

    @property
    def block_options(self) -> Mapping[str, Any]:
        """Options of the blocks that are other than a ViT's."""
        return {"grid": self.grid}

    @property
    def block_class(self) -> type[Block]:
        """The class of the blocks."""
        return LeFFBlock

    def setup(self):
        super().setup()
        self.pos_layer_embed = self.param(
            "pos_layer_embed", nn.initializers.zeros, (self.depth, self.width), jnp.float32
        )
        self.lca = LayerAttention(self.encoder.block.without_position())

    def _patch_embed(self) -> nn.Module:
        rows, columns = pair(self.patch_size)
        patch = rows // STEM_STRIDE, columns // STEM_STRIDE
        return ImageToTokens(self.width, patch, self.dtype, stem_width=self.stem_width)

    def _read(self, carry: Carry, layers: Mapping[str, jax.Array | None], train: bool) -> Float[Array, "b l d"]:
        class_tokens = jnp.swapaxes(layers["class_tokens"], 0, 1)
        return self.lca((class_tokens + self.pos_layer_embed).astype(self.dtype), train)

    def _final(
        self, x: Float[Array, "b l d"], pe: Float[Array, "n d"] | None, table: Float[Array, "*_l n d"] | None
    ) -> Float[Array, "b l d"]:
        place = (rows if rows is None else rows[..., :1, :] for rows in (pe, table))  # that of the class token
        return super()._final(x, *place)

    def _pool(self, x: Float[Array, "b l d"]) -> Float[Array, "b d"]:
        return x[:, -1]


class ImageToTokens(PatchEmbed):
    """Convolution 7x7 of stride 2 without bias, BatchNorm, max-pooling 3x3 of stride 2, and then patches as tokens.

    There is no activation in it. The paddings are 3 and 1 on all sides, with zeros and with -inf.

    Attributes beside those of `PatchEmbed`, whose `patch_size` is one on the pooled map, a quarter of the image's size:
        stem_width: channels of the convolution.
    """

    stem_width: int = 64

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b n d"]:
        init = torch_uniform(49 * images.shape[-1])
        convolution = nn.Conv(
            self.stem_width, (7, 7), 2, padding=3, use_bias=False, dtype=self.dtype, kernel_init=init, name="conv"
        )
        x = BatchNorm(self.dtype, name="bn")(convolution(images), train)
        return super().__call__(nn.max_pool(x, (3, 3), (2, 2), padding=2 * [(1, 1)]))  # pads with -inf


class LeFF(nn.Module):
    """Locally-enhanced feed-forward: bn3(fc2(g(bn2(conv(g(bn1(fc1(x)))))))) with g = GELU, of the patches as a map.

    conv is a depth-wise 3x3 convolution with bias and a border of zeros; fc1 and fc2 act on each pixel (the reference
    calls them 1x1 convolutions). Tokens before the patches come out as they went in.

    Attributes:
        hidden: channels between fc1 and fc2.
        grid: rows and columns of patches.
        dtype: type to compute in.
        gelu: which form of GELU, one of `lape_jax.nn.layers.GELUS`.
    """

    hidden: int
    grid: tuple[int, int]
    dtype: DTypeLike = jnp.float32
    gelu: str = "erf"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        batch, tokens, width = x.shape
        extra = tokens - self.grid[0] * self.grid[1]
        activation = GELUS[self.gelu]
        y = self._layer(nn.Dense, self.hidden, fan_in=width, name="fc1")(x[:, extra:])
        y = checkpoint_name(y, "fc1")
        y = activation(BatchNorm(self.dtype, name="bn1")(y, train))
        depth_wise = {"kernel_size": (3, 3), "padding": 1, "feature_group_count": self.hidden}
        y = self._layer(nn.Conv, self.hidden, fan_in=9, name="conv", **depth_wise)(y.reshape(batch, *self.grid, -1))
        y = activation(BatchNorm(self.dtype, name="bn2")(y, train))
        y = self._layer(nn.Dense, width, fan_in=self.hidden, name="fc2")(y.reshape(batch, -1, self.hidden))
        y = BatchNorm(self.dtype, name="bn3")(y, train)
        return jnp.concatenate([x[:, :extra].astype(y.dtype), y], axis=1)

    def _layer(self, kind: type[nn.Module], features: int, fan_in: int, **options: Any) -> nn.Module:
        init = torch_uniform(fan_in)
        return kind(features, dtype=self.dtype, kernel_init=init, bias_init=init, **options)


class LeFFBlock(Block):
    """A `Block` with `LeFF` for its MLP, which also reports its class token ("class_tokens" of the stack)."""

    def __call__(self, carry: Carry, layer: LayerInputs) -> tuple[Carry, dict[str, jax.Array | None]]:
        carry, out = super().__call__(carry, layer)
        return carry, {**out, "class_tokens": carry.tokens[:, 0]}

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """`LeFF` of `x`, the tokens after the second LayerNorm."""
        options = self.options
        return LeFF(options.mlp_hidden, options.grid, options.dtype, options.gelu, name="mlp")(x, self.train)


class LayerAttention(nn.Module):
    """One `Block` without stochastic depth and position embedding, whose parameters are its own.

    All rows leave it, as in the reference, though one would do: they are a few tokens in an image of hundreds.

    Attributes:
        block: options of the block.
    """

    block: BlockOptions

    @nn.compact
    def __call__(self, tokens: Float[Array, "b l d"], train: bool) -> Float[Array, "b l d"]:
        block = Block(self.block, stochastic_depth=False, train=train)
        nn.share_scope(self, block)
        carry, _ = block(Carry(tokens, None), LayerInputs(jnp.zeros(()), None, jnp.zeros((), jnp.int32)))
        return carry.tokens
