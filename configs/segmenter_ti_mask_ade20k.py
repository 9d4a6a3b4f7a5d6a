r"""Seg-T-Mask/16 (6.7 million parameters) on ADE20K, as MMSegmentation and LaPE train it.

    python -m lape_jax.main --config=configs/segmenter_ti_mask_ade20k.py:path=DIR,init=WEIGHTS \
        --workdir=runs/seg_ti_mask
    python -m lape_jax.main --config=configs/segmenter_ti_mask_ade20k.py:path=DIR,join=default,init=WEIGHTS \
        --workdir=runs/seg_ti_mask_default
    python -m lape_jax.main --config=configs/segmenter_ti_mask_ade20k.py:path=DATA_DIR,source=tfds,init=WEIGHTS \
        --workdir=runs/seg_ti_mask

DIR is ADEChallengeData2016 as its authors publish it; DATA_DIR holds it as array_record, as written by
`python -m lape_jax.prepare scenes --path=DIR --layout=ade20k --out=DATA_DIR --as=ade20k`.
WEIGHTS are those of DeiT-Ti with the same joining: a file, or the workdir of its run; without `init` training starts
from nothing. 160,000 steps of 8 crops of 512 pixels, on a GPU or TPU chip or several; the published runs had 4 GPUs.
Published mIoU, one scale, default -> LaPE: 36.534 -> 37.908 % (LaPE, Table 4); without LaPE
38.1 % in the authors' code, 39.99 % in MMSegmentation's, both from AugReg's weights.
Not yet trained to the end with this code.
Arguments: see `lape_jax.tasks.segment.recipes.segmenter`.
"""

from lape_jax.tasks.segment import recipes


def get_config(arg=""):
    return recipes.segmenter(arg, "segmenter_ti_mask")
