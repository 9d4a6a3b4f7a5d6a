"""CVT-7/4 (3.7 million parameters) on CIFAR-100, as Compact Transformers and LaPE train it.

    python -m lape_jax.main --config=configs/cvt_cifar100.py:path=DATA_DIR --workdir=runs/cvt
    python -m lape_jax.main --config=configs/cvt_cifar100.py:path=DIR,source=arrays --workdir=runs/cvt
    python -m lape_jax.main --config=configs/cvt_cifar100.py:path=DATA_DIR,join=default --workdir=runs/default

DATA_DIR holds cifar100 as TFDS prepares it, DIR train.npz and val.npz (`python -m lape_jax.prepare` makes either). One
GPU or TPU chip: the data set lies on it and is augmented there. 310 epochs of 390 steps at batch 128.
Published top-1, default -> LaPE: 77.452 -> 78.052 %, means of the seeds 121 to 125 on one V100 (LaPE, Table 2). Not yet
trained to the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.compact_cifar`.
"""

from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.compact_cifar(arg, "cvt_7_4", "cifar100")
