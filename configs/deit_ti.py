"""DeiT-Ti (5.7 million parameters) on ImageNet-1K, as DeiT and LaPE train it.

    python -m lape_jax.main --config=configs/deit_ti.py:path=DATA_DIR --workdir=runs/deit_ti
    python -m lape_jax.main --config=configs/deit_ti.py:path=DATA_DIR,join=default --workdir=runs/deit_ti_default
    python -m lape_jax.main --config=configs/deit_ti.py:path=DIR,source=folder --workdir=runs/deit_ti

DATA_DIR holds imagenet2012 as TFDS prepares it (array_record), DIR one folder per class in train/ and val/. A global
batch of 1024 over all devices; 300 epochs of 1,251 steps.
Published top-1, default -> LaPE: 71.54 -> 73.11 % (LaPE, Table 1); DeiT's own: 72.2 % (crop=deit evaluates as it does).
Published time: 4 V100, 256 images each: 412 s an epoch with LaPE, 410 s without (its Table 6). Not yet trained
to the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.deit`.
"""

from lape_jax.sweeps import grid as sweeps
from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.deit(arg, "deit_ti")


def sweep(arg=""):
    models = {"table1": sweeps.TABLE1, "table1_distilled": sweeps.DISTILLED}
    return sweeps.paper(arg, "deit_ti.py", models=models)
