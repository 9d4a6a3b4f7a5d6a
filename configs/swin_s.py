"""Swin-S (50 million parameters) on ImageNet-1K, as Swin and LaPE train it.

    python -m lape_jax.main --config=configs/swin_s.py:path=DATA_DIR --workdir=runs/swin_s
    python -m lape_jax.main --config=configs/swin_s.py:path=DATA_DIR,join=default,pe=relative --workdir=runs/swin_s_rpe
    python -m lape_jax.main --config=configs/swin_s.py:path=DATA_DIR,pe=learnable --workdir=runs/swin_s_table
    python -m lape_jax.main --config=configs/swin_s.py:path=DIR,source=folder --workdir=runs/swin_s

The first is Swin with its relative position bias and a learnable table that LaPE delivers, the second Swin as it is,
the third LaPE without the relative bias. DATA_DIR holds imagenet2012 as TFDS prepares it (array_record), DIR one folder
per class in train/ and val/. A global batch of 1024 over all devices; 300 epochs of 1,251 steps.
Published top-1 (LaPE, Table 1): relative bias alone 83.17 %, with a table and LaPE 83.39 %; a table without the bias,
default -> LaPE 82.81 -> 83.26 %. Swin's own: 83.2 % (its README). Not yet trained to the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.swin`.
"""

from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.swin(arg, "swin_s")
