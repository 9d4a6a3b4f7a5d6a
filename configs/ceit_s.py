"""CeiT-S (24 million parameters) on ImageNet-1K, as CeiT and LaPE train it.

    python -m lape_jax.main --config=configs/ceit_s.py:path=DATA_DIR --workdir=runs/ceit_s
    python -m lape_jax.main --config=configs/ceit_s.py:path=DATA_DIR,join=default --workdir=runs/ceit_s_default
    python -m lape_jax.main --config=configs/ceit_s.py:path=DIR,source=folder --workdir=runs/ceit_s

DATA_DIR holds imagenet2012 as TFDS prepares it (array_record), DIR one folder per class in train/ and val/. A global
batch of 1024 over all devices; 300 epochs of 1,251 steps. The published runs had 4 GPUs with 256 images each, whose
BatchNorms saw those alone; here they see the whole batch.
Published top-1, default -> LaPE: 81.88 -> 82.12 % (LaPE, Table 1); CeiT's own: 82.0 % (its README). Not yet trained to
the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.ceit`.
"""

from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.ceit(arg, "ceit_s")
