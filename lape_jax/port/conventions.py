"""Whose names the entries of a file have: enough to say it to the one who wonders why they do not fit."""

import re
from collections.abc import Iterable

# What only these names have in them; the first that is found in any name tells. Numbers stand for any number.
CONVENTIONS = {
    "lape_jax's": r"^(params/)?(blocks|layers_\d+/blocks|patch_embed|stem|encoder)/",
    "big_vision's": r"(^|/)(Transformer/encoderblock|MAPHead_0/)",
    "MMSegmentation's": r"^decode_head\.|\.attn\.attn\.in_proj_|\.ffn\.layers\.\d",
    "Hugging Face's Swin": r"(^|\.)layers\.\d+\.blocks\.\d+\.(attention\.|layernorm_)",
    "Hugging Face's CLIP or SigLIP": r"(^|\.)vision_model\.",
    "Hugging Face's ViT or DeiT": r"(^|\.)embeddings\.(patch_embeddings|cls_token|position_embeddings)"
    r"|(^|\.)layers?\.\d+\.(attention\.(attention|q_proj|output|self)|layernorm_before|intermediate)",
    "torchvision's ViT": r"(^|\.)encoder_layer_\d+\.|(^|\.)conv_proj\.weight|(^|\.)class_token$",
    "torchvision's Swin": r"(^|\.)features\.\d+\.\d+\.(attn|norm1|mlp)\.",
    "OpenAI's or OpenCLIP's CLIP": r"(^|\.)transformer\.resblocks\.\d+\.",
    "vit-pytorch's": r"(^|\.)to_patch_embedding\.|(^|\.)transformer\.layers\.\d+\.\d+\.",
    "Compact Transformers'": r"(^|\.)(classifier\.blocks\.\d+\.|tokenizer\.conv_layers\.)",
    "T2T-ViT's": r"(^|\.)tokens_to_token\.",
    "CeiT's": r"(^|\.)i2t\.|\.leff\.conv\d",
    "Swin's or timm's Swin": r"(^|\.)layers\.\d+\.blocks\.\d+\.",
    "Segmenter's": r"(^|\.)encoder\.blocks\.\d+\..*|(^|\.)decoder\.(cls_emb|proj_dec|head\.weight)",
    "ViT-Adapter's": r"(^|\.)interactions\.\d+\.(injector|extractor)\.",
    "DeiT's or timm's ViT": r"(^|\.)blocks\.\d+\.(attn|norm1|mlp)\.",
    "timm's RegNet": r"(^|\.)s\d\.b\d+\.conv\d\.",
    "a ResNet's": r"(^|\.)layer\d\.\d+\.conv\d\.",
}
UNCONVERTED = ("Hugging Face's CLIP", "OpenAI", "vit-pytorch", "a ResNet")


def convention(names: Iterable[str]) -> str:
    """Whose names they are, "" if nobody's that is known: "DeiT's or timm's ViT"."""
    text = list(names)
    return next((who for who, pattern in CONVENTIONS.items() if any(re.search(pattern, name) for name in text)), "")


def described(what: str, names: Iterable[str]) -> str:
    """`what`, and whose names it has: "the state dict in torchvision's ViT names, which ..."."""
    who = convention(names)
    if not who:
        return what
    return f"{what} in {who} names{', which are not converted yet,' if who.startswith(UNCONVERTED) else ''}"
