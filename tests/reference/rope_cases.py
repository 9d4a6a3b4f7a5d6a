"""The models with rotary position embeddings that are compared with the references: numpy only."""

from tests.reference.cases import Case
from tests.reference.segmenter_cases import MMSEG, ODD, SegmenterCase
from tests.reference.vit_adapter_cases import AdapterCase

OTHER = {"image": (20, 12), "label": "other_size"}  # with the weights of 3 x 5 patches, which RoPE does not mind
VITS = [
    Case(pe="rope_axial", join="default"),
    Case(pe="rope_axial", join="default", **OTHER),
    Case(pe="rope_mixed", join="default", **OTHER),
    Case(pe="rope_dinov3", join="default", **OTHER),
    Case(pe="learnable+rope_mixed", join="lape", layer_scale=True, label="layer_scale"),
    Case(pe="learnable+rope_mixed", join="default", distilled=True, label="distilled"),
    Case(pe="learnable+rope_dinov3", join="unshared", pool="gap", label="gap"),
    Case(pe="learnable+relative+rope_mixed", join="lape"),
    Case(pe="sincos_1d+rope_axial+peg", join="lape"),
]
SEGMENTERS = [
    SegmenterCase(join="default", pe="rope_mixed", at=ODD),
    SegmenterCase(join="lape", pe="learnable+rope_axial", at=ODD, decoder="linear", distilled=True, **MMSEG),
    SegmenterCase(join="lape", pe="learnable+relative+rope_dinov3", at=ODD, decoder="linear"),
]
ADAPTERS = [
    AdapterCase(join="lape", rope="rope_mixed"),
    AdapterCase(variant="segmentation", rope="rope_axial", at=(64, 96), depth=4),
]
