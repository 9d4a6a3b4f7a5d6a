"""The published training recipes, each in one place; the files in configs/ add model, hardware and numbers."""

from ml_collections import ConfigDict

from lape_jax.config.reading import parse_arg
from lape_jax.errors import UserError, nearest
from lape_jax.models.segmenter import CODE_BASES
from lape_jax.tasks.recipe_base import debug, start
from lape_jax.tasks.segment.groups import UPERNET_WD_MULTS


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
    config = _ade20k(arg, model)
    config.model.update(CODE_BASES[arg.code])
    config.segment.mean_over = "all" if mmseg else "valid"

    optimizer = config.optimizer
    optimizer.name, optimizer.nesterov = "sgd", not mmseg
    optimizer.schedule = "poly"
    optimizer.lr, optimizer.min_lr = 1e-3, 1e-4 if mmseg else 1e-5
    optimizer.weight_decay = 0.0
    config.total_steps = arg.steps or (160_000 if mmseg else 161_728)
    config.warmup_steps = 0
    if arg.debug:
        _debug(config, patch_size=4)
    return config


def upernet(arg: str, model: str) -> ConfigDict:
    """ADE20K as ViT-Adapter's authors train UperNet on it: AdamW with layer-wise decay, crops of 512 pixels.

    Source: czczup/ViT-Adapter, `segmentation/configs/ade20k/upernet_deit_adapter_{tiny,small}_512_160k_ade20k.py`.
    `arg` as for `segmenter`, but without `code`. `steps` = 0 are 160,000; the warm-up is 1,500 of them, and the same
    part of a shorter run. The learning rate does not follow the batch.
    """
    arg = parse_arg(
        arg, path="", source="ade20k", init="", join="lape", pe="learnable", seed=0, steps=0, batch=16, debug=False
    )
    config = _ade20k(arg, model)
    config.segment.mean_over = "all"
    config.segment.stride, config.segment.multiple = 341, 32

    optimizer = config.optimizer
    optimizer.schedule, optimizer.power = "poly_warm", 1.0
    optimizer.lr, optimizer.min_lr = 1.2e-4 if model.endswith("_ti") else 6e-5, 0.0
    optimizer.warmup_lr = 1e-6 * optimizer.lr
    optimizer.weight_decay, optimizer.wd_mults, optimizer.layer_decay = 0.01, UPERNET_WD_MULTS, 0.95
    config.total_steps = arg.steps or 160_000
    config.warmup_percent = 100 * 1500 / 160_000
    if arg.debug:
        _debug(config, patch_size=None)
        config.model.update(depth=4, deform_heads=2, spatial_width=8, channels=16, aux_channels=16, table_size=32)
    return config


def _ade20k(arg: ConfigDict, model: str) -> ConfigDict:
    """What both have in common."""
    arg.epochs = None
    config = start(arg, model)
    config.task = "segment"
    config.dtype = "bfloat16"
    config.init.weights = arg.init
    config.data.name = "ade20k" if arg.source == "tfds" else ""
    if arg.source in ("ade20k", "tfds"):
        config.data.train_split, config.data.val_split = "training", "validation"
    config.data.image_size = 512
    config.data.orientation = "view"  # as mmcv decodes, and masks are drawn
    config.data.threads = 16
    config.augment.flip = True
    config.eval_batch_size = 8
    config.eval_epochs = config.checkpoint_epochs = None
    config.eval_percent, config.checkpoint_steps = 10.0, 2000
    return config


def _debug(config: ConfigDict, patch_size: int | None) -> None:
    debug(config, patch_size)
    config.segment.scale, config.segment.stride = (64, 48), 24
    config.mix_percent = None
