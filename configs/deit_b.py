"""DeiT-B (87 million parameters) on ImageNet-1K, as DeiT and LaPE train it.

    python -m lape_jax.main --config=configs/deit_b.py:path=DATA_DIR --workdir=runs/deit_b
    python -m lape_jax.main --config=configs/deit_b.py:path=DATA_DIR,join=default --workdir=runs/deit_b_default
    python -m lape_jax.main --config=configs/deit_b.py:path=DIR,source=folder --workdir=runs/deit_b

DATA_DIR holds imagenet2012 as TFDS prepares it (array_record), DIR one folder per class in train/ and val/. A global
batch of 1024 over all devices; 300 epochs of 1,251 steps.
Published top-1, default -> LaPE: 81.64 -> 81.97 % (LaPE, Table 1); DeiT's own: 81.8 % (crop=deit evaluates as it does).
Published time: 8 V100, 128 images each: 590 s an epoch with LaPE, 588 s without (its Table 6). Not yet trained
to the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.deit`.
"""

from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.deit(arg, "deit_b")
