r"""UperNet on ViT-Adapter-S (57.6 million parameters) on ADE20K, as ViT-Adapter's authors and LaPE train it.

    python -m lape_jax.main --config=configs/upernet_vit_adapter_s_ade20k.py:path=DIR,init=WEIGHTS \
        --workdir=runs/upernet_s
    python -m lape_jax.main --config=configs/upernet_vit_adapter_s_ade20k.py:path=DIR,join=default,init=WEIGHTS \
        --workdir=runs/upernet_s_default
    python -m lape_jax.main --config=configs/upernet_vit_adapter_s_ade20k.py:path=DATA_DIR,source=tfds,init=WEIGHTS \
        --workdir=runs/upernet_s

DIR is ADEChallengeData2016 as its authors publish it; DATA_DIR holds it as array_record, as written by
`python -m lape_jax.prepare scenes --path=DIR --layout=ade20k --out=DATA_DIR --as=ade20k`.
WEIGHTS are those of DeiT-S with the same joining: a file, or the workdir of its run; without `init` training starts
from nothing. 160,000 steps of 16 crops of 512 pixels; the authors had 8 GPUs with 2 crops each, LaPE's runs 4 GPUs.
Published mIoU, one scale, default -> LaPE: 45.073 -> 45.550 % (LaPE, Table 4); without LaPE 46.2 % in ViT-Adapter's
own table.
Not yet trained to the end with this code.
Arguments: see `lape_jax.tasks.segment.recipes.upernet`.
"""

from lape_jax.tasks.segment import recipes


def get_config(arg=""):
    return recipes.upernet(arg, "upernet_vit_adapter_s")
