"""The published training recipes, each in one place; the files in configs/ add model, hardware and numbers."""

from ml_collections import ConfigDict

from lape_jax.config.reading import parse_arg
from lape_jax.errors import UserError, nearest
from lape_jax.models.segmenter import CODE_BASES
from lape_jax.tasks.recipe import debug, start


def segmenter(arg: str, model: str) -> ConfigDict:
    """ADE20K as Segmenter and LaPE train on it: SGD, polynomial decay, crops of 512 pixels, from ImageNet's weights.

    Source: `code=mmseg`, open-mmlab/mmsegmentation, `configs/segmenter/`, which LaPE used; `code=rstrudel`, the
    authors' rstrudel/segmenter, `config.yml` and `train.py`. DeiT's normalisation in both. `arg`: "name=value,..." of

        path      of source=ade20k: the directory of images/ and annotations/ (ADEChallengeData2016); of tfds: what
                  `python -m lape_jax.prepare scenes` made of it, as ade20k
        source    ade20k | tfds (ade20k) | folder
        init      weights to start from: of a DeiT, a file or the workdir of a run
        join, pe  joining method and position embedding
        seed, steps, batch
        code      mmseg | rstrudel
        debug     a run of two steps of a tiny model on scikit-learn's digits

    `steps` = 0 are those of the code base. The learning rate does not follow the batch.
    """
    arg = parse_arg(
        arg, path="", source="ade20k", init="", join="lape", pe="learnable", seed=0, steps=0, batch=8, code="mmseg",
        debug=False,
    )  # fmt: skip
    if arg.code not in CODE_BASES:
        raise UserError(f"config argument code={nearest(arg.code, CODE_BASES)}")
    mmseg = arg.code == "mmseg"
    arg.epochs = None
    config = start(arg, model)
    config.task = "segment"
    config.dtype = "bfloat16"
    config.model.update(CODE_BASES[arg.code], remat="attention")
    config.init.weights = arg.init
    config.data.name = "ade20k" if arg.source == "tfds" else ""
    if arg.source in ("ade20k", "tfds"):
        config.data.train_split, config.data.val_split = "training", "validation"
    config.data.image_size = 512
    config.data.threads = 16
    config.augment.flip = True
    config.segment.mean_over = "all" if mmseg else "valid"
    config.eval_batch_size = 8

    optimizer = config.optimizer
    optimizer.name, optimizer.nesterov = "sgd", not mmseg
    optimizer.schedule = "poly"
    optimizer.lr, optimizer.min_lr = 1e-3, 1e-4 if mmseg else 1e-5
    optimizer.weight_decay = 0.0
    config.total_steps = arg.steps or (160_000 if mmseg else 161_728)
    config.warmup_steps = 0
    config.eval_epochs = config.checkpoint_epochs = None
    config.eval_percent, config.checkpoint_steps = 10.0, 2000
    if arg.debug:
        debug(config, patch_size=4)
        config.segment.scale, config.segment.stride = (64, 48), 24
        config.mix_percent = None
    return config
