"""DeiT-Ti with a distillation token on ImageNet-1K: hard distillation from RegNetY-160, as DeiT and LaPE train it.

    python -m lape_jax.main --config=configs/deit_ti_distilled.py:path=DATA_DIR,teacher=FILE --workdir=runs/distilled

DATA_DIR holds imagenet2012 as TFDS prepares it (array_record). FILE is regnety_160-a5fe301d.pth as DeiT's authors
published it. Any other model of the same classes and image size can teach: the workdir of a run (teacher=runs/teacher),
or a file of weights with --config.distill.model=NAME.
Published top-1, default -> LaPE: 74.16 -> 74.97 % (LaPE, Table 1); DeiT's own: 74.5 %. Hardware: as
deit_ti.py, and the teacher's forward pass. Not yet trained to the end with this code.
Arguments: see `lape_jax.tasks.classify.recipes.deit`.
"""

from lape_jax.tasks.classify import recipes


def get_config(arg=""):
    return recipes.deit(arg, "deit_ti_distilled")
