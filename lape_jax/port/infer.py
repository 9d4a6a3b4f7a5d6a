"""Which model weights are for, seen from another model of the same family: what a warm start has to begin with."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from lape_jax.errors import UserError
from lape_jax.models.base import Classifier, pair
from lape_jax.models.ceit import CeiT
from lape_jax.models.segmenter import DECODERS, Segmenter
from lape_jax.models.t2t import T2TViT
from lape_jax.models.vit import ViT
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.nn import position
from lape_jax.nn.join import JOINS, PUBLISHED, Joining

# And which axis is that of classes.
HEADS = {"head/kernel": -1, "decoder/head/kernel": -1, "decoder/cls_emb": -2, "decode_head/conv_seg/kernel": -1}
HEADS |= {"roi_head/mask_head/conv_logits/kernel": -1}
TABLE, BIAS_TABLE = "pos_embed", "relative_position_bias_table"
PE_NORM, PE_NORMS, LAST_PE_NORM = "/pe_norm/", "pe_norms/", "pe_norm_last/"
STAGE_TABLES, MASKS = "pos_embed_0", "attn_mask"  # of a Swin
DECODER = "decoder/"  # of a Segmenter
PATCH_KERNELS = ("patch_embed/proj/kernel", "embedding/kernel")
# The first convolution: of a CeiT, a CCT or a RegNet, or else that over patches.
STEMS = ("patch_embed/conv/kernel", "patch_embed/conv0/kernel", "stem/conv/kernel", *PATCH_KERNELS)
CLASS_TOKEN, REGISTERS = "cls_token", "reg_token"
ADAPTER = "interactions_0/"  # of a ViT-Adapter
LAYER_SCALE = "blocks/ls1/gamma"
GLOBAL_BIASES, WINDOW_BIASES = f"blocks/attn/{BIAS_TABLE}", f"layers_0/blocks/attn/{BIAS_TABLE}"


def infer(shapes_for: Callable[[nn.Module], Mapping[str, tuple[int, ...]]], model: nn.Module) -> list[nn.Module]:
    """Models like `model` that weights may be for, the most probable first; they may fail their `check`.

    They differ from it in what can be read off the weights: number of classes, class and distillation token, registers,
    layer scales, joining method, relative position bias, learned frequencies of RoPE, size of patches, channels of
    images, image size, Swin's windows (which imply an image size, if no table does). What cannot is taken to be the
    model's: heads, whether a table is shared or default, square images.

    Args:
        shapes_for: (model) -> shapes of those of its variables, by path, that the weights have, perhaps in other
            shapes than the model's; and what else `lape_jax.port.torch.stored_shapes` tells.

    Raises:
        UserError: the weights have PE norms for a table that neither they nor the model have.
    """
    found: dict[str, tuple[int, ...]] = {}
    for probe in _probes(model):
        with contextlib.suppress(UserError):  # a family's names may lack what it could have, as a distillation token
            found = dict(shapes_for(probe)) | found
    found = found or dict(shapes_for(model))  # which says why there is nothing
    numbers = [found[path][axis] for path, axis in HEADS.items() if path in found]
    classes = {"num_classes": numbers[0]} if numbers else {}
    classes |= _channels(found)
    if not isinstance(model, Classifier):
        return [model.clone(**classes)]
    classes |= _patches(found, model)
    if STAGE_TABLES in found:
        found[TABLE] = found[STAGE_TABLES]
    settings: dict[str, Any] = {"join": _joining(found, model), **classes, **_windows(found, model)}
    settings |= _decoder(found, model)
    if hasattr(model, "distilled"):
        settings["distilled"] = "dist_token" in found
    settings |= _tokens(found, model)
    if not JOINS[settings["join"]].has_norms:
        settings["pe_norm"] = "layernorm"
    candidates = []
    for absolute in _tables(found, model):
        rest = [position.RELATIVE] if any(path.endswith(BIAS_TABLE) for path in found) else []
        rest += [rope] if (rope := _rope(found, model)) else []
        rest += [position.PEG] if position.has_peg(model.pe) else []
        candidate = model.clone(**settings, pe="+".join([*filter(None, [absolute]), *rest]) or position.NONE)
        candidates.append(_sized(candidate, found))
    return candidates


def _tokens(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> dict[str, Any]:
    """Which tokens a ViT has beside the patches, its heads, and whether its branches are scaled."""
    if type(model) is not ViT:
        return {}
    table = found.get(TABLE, (0, 0))
    without_class = CLASS_TOKEN not in found and math.isqrt(table[-2]) ** 2 == table[-2] > 0
    settings: dict[str, Any] = {"registers": found[REGISTERS][1] if REGISTERS in found else 0}
    if CLASS_TOKEN in found or (without_class and model.pool == "token"):
        settings["pool"] = "token" if CLASS_TOKEN in found else "gap"
    if not any(path in found for path in HEADS):
        settings["num_classes"] = 0
    else:
        settings["dist_head"] = "head_dist/kernel" in found or "dist_token" not in found
    scaled = model.layer_scale or 1.0
    return {**settings, "layer_scale": scaled if LAYER_SCALE in found else None}


def _probes(model: nn.Module) -> Iterator[nn.Module]:
    """Models which together have all variables that weights of the family can have."""
    if not isinstance(model, Classifier):
        yield model
        return
    turned = isinstance(model, ViT) and model.width // model.heads % 4 == 0
    most = [position.LEARNABLE, position.RELATIVE, *[position.ROPE_MIXED][: int(turned)]]
    tables = ["+".join(most), "+".join([position.LEARNABLE, *model.pe.split("+")[1:]])]
    changes: list[dict[str, Any]] = [{}]
    kinds = {_leaves(join): (name, join) for name, join in _methods(model).items() if any(_leaves(join))}
    for name, join in kinds.values():
        kind = {"join": name} if join.has_norms else {"join": name, "pe_norm": "layernorm"}
        changes += [{**kind, "pe": pe} for pe in ([position.LEARNABLE] if join.table_per_layer else tables)]
    if hasattr(model, "distilled"):
        changes += [{**change, "distilled": True} for change in changes]
    if type(model) is ViT:
        changes += [{"pool": "token", "registers": 1, "layer_scale": 1.0}]
    if isinstance(model, Segmenter):
        changes += [{"decoder_type": kind} for kind in DECODERS]
    probes = [model.clone(**change) for change in changes]
    for probe in probes:
        with contextlib.suppress(UserError):
            probe.check()
            yield probe


def sources(shapes_for: Callable[[nn.Module], Mapping[str, tuple[int, ...]]], model: nn.Module) -> list[nn.Module]:
    """What `infer` lists, for weights that `model` is to start from: some start from a classifier, too."""
    if isinstance(model, ViTAdapter) and not any(path.startswith(ADAPTER) for path in shapes_for(model)):
        classifier = model.classifier()
        scaled = classifier.clone(layer_scale=1.0)
        return infer(shapes_for, scaled if LAYER_SCALE in shapes_for(scaled) else classifier)
    if isinstance(model, Segmenter):
        probes = [model.clone(decoder_type=kind) for kind in DECODERS]
        if not any(path.startswith(DECODER) for probe in probes for path in shapes_for(probe)):
            return infer(shapes_for, model.classifier())
    return infer(shapes_for, model)


def _decoder(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> dict[str, Any]:
    """The kind of a Segmenter's decoder."""
    if not isinstance(model, Segmenter) or not any(path in found for path in HEADS):
        return {}
    return {"decoder_type": "mask" if "decoder/cls_emb" in found else "linear"}


def _channels(found: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Channels of the images."""
    return next(({"in_channels": found[path][2]} for path in STEMS if path in found), {})


def _patches(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> dict[str, Any]:
    """Other patches than the model's, in images of as many as its own have or, by the table, another number."""
    kernel = next((found[path] for path in PATCH_KERNELS if path in found), None)
    if kernel is None or not cuts_patches(model) or kernel[:2] == pair(model.patch_size):
        return {}
    (rows, columns), (height, width) = model.grid, pair(kernel[0] if kernel[0] == kernel[1] else kernel[:2])
    size = (rows * height, columns * width)
    return {
        "patch_size": height if height == width else (height, width),
        "image_size": size[0] if size[0] == size[1] else size,
    }


def cuts_patches(model: nn.Module) -> bool:
    """Whether the kernel of the model's patch embedding is one over patches of the image, as large as it says."""
    return bool(getattr(model, "patch_size", None)) and not isinstance(model, CeiT | T2TViT)


def _windows(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> dict[str, Any]:
    """Other windows than the model's, if the weights have biases for them, and images of as many windows."""
    if not hasattr(model, "windows") or WINDOW_BIASES not in found:
        return {}
    own, side = model.windows[0].size, (math.isqrt(found[WINDOW_BIASES][-2]) + 1) // 2
    if side == own:
        return {}
    height, width = (pixels * side // own for pixels in pair(model.image_size))
    return {"window_size": side, "image_size": height if height == width else (height, width)}


def _joining(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> str:
    """The model's method, or else LaPE or another one, that has such weights."""
    # PyTorch has the same names for the norms of blocks whether the first has one or not.
    norms = [shape for path, shape in found.items() if PE_NORM in path]
    apart = any(path.startswith(PE_NORMS) for path in found) and not any(len(s) and s[0] == model.depth for s in norms)
    last = any(path.startswith(LAST_PE_NORM) for path in found)
    leaves = (bool(norms) and not apart, apart, last, len(found.get(TABLE, ())) == 3)
    methods = _methods(model)
    first = (model.joining, PUBLISHED, *methods)
    return next((name for name in first if name in methods and _leaves(methods[name]) == leaves), model.joining)


def _methods(model: nn.Module) -> dict[str, Joining]:
    """The joining methods that weights may be of, as a model of this kind has them."""
    return {name: model.clone(join=name).method for name, join in JOINS.items() if join.trainable}


def _leaves(join: Joining) -> tuple[bool, bool, bool, bool]:
    """What weights show of a method: PE norms in all blocks, or in all but the first; a last one; tables by layer."""
    return join.normalises_pe, join.norms_apart, join.last_norm, join.table_per_layer


def _tables(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> list[str | None]:
    """The kinds of absolute table that the weights may have; frozen ones are not seen among the variables."""
    own, _ = position.parse_pe(model.pe)
    if TABLE in found:  # PyTorch keeps frozen tables under the same name
        return list(dict.fromkeys([own or position.LEARNABLE, position.LEARNABLE]))
    if own not in (None, position.LEARNABLE):
        return [own, None]
    if any(part in path for part in (PE_NORM, PE_NORMS, LAST_PE_NORM) for path in found):
        raise UserError(
            f"the weights have PE norms and no position table: it is a sinusoid, and pe must be that one, not "
            f"{model.pe!r}"
        )
    return [None]


def _rope(found: Mapping[str, tuple[int, ...]], model: nn.Module) -> str | None:
    """The kind of rotary position embedding: only learned frequencies are seen among the variables."""
    if any(path.endswith("/freqs") for path in found):
        return position.ROPE_MIXED
    own = position.parse_rope(model.pe)
    return None if own == position.ROPE_MIXED else own


def _sized(model: nn.Module, found: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """`model` for the images, square unless they are its own, whose patches the table has rows for."""
    if TABLE in found:
        patches = found[TABLE][-2] - (model.num_prefix_tokens - model.no_embed_tokens)
    elif MASKS in found:
        patches = found[MASKS][0] * found[MASKS][1]
    elif GLOBAL_BIASES in found:  # of all pairs of patches; those of windows say nothing about images
        patches = ((math.isqrt(found[GLOBAL_BIASES][-2]) + 1) // 2) ** 2
    else:
        return model
    side = math.isqrt(max(patches, 0))
    if patches == math.prod(model.grid) or side * side != patches:
        return model
    field = "table_size" if hasattr(model, "table_size") else "image_size"
    height, width = pair(getattr(model, field))
    size = (height * side // model.grid[0], width * side // model.grid[1])
    return model.clone(**{field: size[0] if size[0] == size[1] else size})
