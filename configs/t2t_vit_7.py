"""T2T-ViT-7 (4.3 million parameters) on ImageNet-1K, as T2T-ViT and LaPE train it.

    python -m lape_jax.main --config=configs/t2t_vit_7.py:path=DATA_DIR --workdir=runs/t2t
    python -m lape_jax.main --config=configs/t2t_vit_7.py:path=DATA_DIR,join=default --workdir=runs/t2t_default
    python -m lape_jax.main --config=configs/t2t_vit_7.py:path=DIR,source=folder --workdir=runs/t2t

DATA_DIR holds imagenet2012 as TFDS prepares it (array_record), DIR one folder per class in train/ and val/. A global
batch of 512 over all devices; 310 epochs of 2,502 steps. The position embedding is the 1-D sinusoid, which is not
learned.
Published top-1, default -> LaPE: 71.69 -> 71.92 % on 4 V100 (LaPE, Table 1); T2T-ViT's own: 71.7 %, of the EMA of the
weights (`val/ema_top1` here; which one LaPE's are is not said). Not yet trained to the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.t2t`.
"""

from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.t2t(arg, "t2t_vit_7")
