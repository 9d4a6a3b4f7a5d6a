"""The published training recipes, each in one place; the files in configs/ add model, hardware and numbers.

What the papers' code does and this does not: the EMA of the weights that DeiT's and LaPE's scripts keep is
never evaluated there, so it is off. Their float16 with loss scaling is bfloat16 in `deit`, and float32 in
`compact_cifar` unless `--config.dtype=bfloat16` is given. Mixup and CutMix are drawn once for a batch, and reverse all
of it, where DeiT's processes draw and reverse each for its own 256 images.

Warm-up, cool-down and mixing are published in epochs. Here they are shares of the run: the same steps at the published
length, and in proportion at any other.
"""

from ml_collections import ConfigDict

from lape_jax.config.reading import parse_arg
from lape_jax.errors import UserError, nearest
from lape_jax.tasks.recipe_base import debug, start

# Evaluation: side of the centre crop / resized shorter side.
CROPS = {"lape": 1.0, "deit": 0.875}
CIFAR = {
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    "cifar100": {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
}


def deit(arg: str, model: str, *, crop: str = "lape") -> ConfigDict:
    """ImageNet-1K as DeiT and LaPE train on it: AdamW, 300 epochs, repeated augmentation, mixup and CutMix.

    Source: facebookresearch/deit and Ingrid725/LaPE, `main.py`, `datasets.py` and `samplers.py`, with timm 0.3.2 to
    0.3.4. `arg`: "name=value,..." of

        path      the data_dir of TFDS, or with source=folder the directory of train/ and val/
        source    tfds (imagenet2012) | folder
        join, pe  joining method and position embedding
        seed, epochs, batch
        crop      of the evaluation: lape (resize 224, crop 224) | deit (256, 224); if not given, what `crop` is
        teacher   distilled models: weights of the teacher (a file, or the workdir of a run)
        debug     a run of two steps of a tiny model on scikit-learn's digits
    """
    arg = parse_arg(
        arg, path="", source="tfds", join="lape", pe="learnable", seed=0, epochs=300.0, batch=1024, crop=crop,
        teacher="", debug=False,
    )  # fmt: skip
    if arg.crop not in CROPS:
        raise UserError(f"config argument crop={nearest(arg.crop, CROPS)}")
    config = start(arg, model)
    _imagenet(config)
    config.data.crop_ratio = CROPS[arg.crop]
    config.data.repeats = 3

    config.optimizer.schedule = "epoch_lag"
    config.optimizer.lr, config.optimizer.lr_batch = 5e-4, 512
    config.warmup_percent = 100 * 5 / 300
    if model.endswith("_distilled"):
        config.distill.teacher = arg.teacher or ("labels" if arg.debug else "")
        config.distill.model = "regnety_160"
    elif arg.teacher:
        size = model.split("_")[1]
        raise UserError(f"config argument teacher: {model} has no distillation token; take deit_{size}_distilled")
    return debug(config) if arg.debug else config


def t2t(arg: str, model: str) -> ConfigDict:
    """ImageNet-1K as T2T-ViT trains on it: AdamW, 300 + 10 epochs, mixup and CutMix; an EMA of the weights.

    Source: yitu-opensource/T2T-ViT, `main.py` and the commands of its README. The published numbers are those of the
    EMA. `arg`: "name=value,..." of

        path      the data_dir of TFDS, or with source=folder the directory of train/ and val/
        source    tfds (imagenet2012) | folder
        join, pe  joining method and position embedding
        seed, epochs, batch
        debug     a run of two steps of a tiny model on scikit-learn's digits

    `epochs` are those of the cosine; cool-down follows, ten epochs after 300. The learning rate is that for a batch of
    512, and does not follow the batch.
    """
    arg = parse_arg(
        arg, path="", source="tfds", join="lape", pe="sincos_1d", seed=0, epochs=300.0, batch=512, debug=False
    )
    config = start(arg, model)
    _imagenet(config)
    config.data.crop_ratio = 0.9  # resized to 248
    config.data.interpolation = "random"
    config.augment.order = "mix_then_erase"
    config.ema_decay = 0.99996

    config.optimizer.schedule = "epoch"
    config.total_epochs = arg.epochs * 310 / 300
    config.warmup_percent = config.cooldown_percent = 100 * 10 / 310
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.05 if model.endswith("14") else 0.03
    config.optimizer.wd_mults = ((r"(.*/)?(bias|scale|gamma)|cls_token", 0.0), (r".*", 1.0))
    return debug(config, patch_size=None) if arg.debug else config


def ceit(arg: str, model: str) -> ConfigDict:
    """ImageNet-1K as CeiT trains on it: the recipe of DeiT, evaluated as DeiT is.

    Source: coeusguo/ceit, `main.py`. Its BatchNorms see the 256 images of one GPU, and here the whole batch.
    `arg` is that of `deit`, with crop=deit if none is given.
    """
    return deit(arg, model, crop="deit")


def swin(arg: str, model: str) -> ConfigDict:
    """ImageNet-1K as Swin trains on it: AdamW, 300 epochs, clipped gradients, mixup and CutMix.

    Source: microsoft/Swin-Transformer, `config.py`, `lr_scheduler.py` and `optimizer.py`. `arg`: "name=value,..." of

        path      the data_dir of TFDS, or with source=folder the directory of train/ and val/
        source    tfds (imagenet2012) | folder
        join, pe  joining method and position embedding
        seed, epochs, batch
        debug     a run of two steps of a tiny model on scikit-learn's digits

    All learning rates follow the batch.
    """
    arg = parse_arg(
        arg, path="", source="tfds", join="lape", pe="learnable+relative", seed=0, epochs=300.0, batch=1024,
        debug=False,
    )  # fmt: skip
    config = start(arg, model)
    _imagenet(config)
    config.model.drop_path = 0.3 if model == "swin_s" else 0.2
    config.data.crop_ratio = 0.875  # resized to 256

    optimizer = config.optimizer
    optimizer.schedule = "step_prefix"
    optimizer.lr, optimizer.lr_batch = 5e-4, 512
    optimizer.warmup_lr, optimizer.min_lr = 5e-7 * arg.batch / 512, 5e-6 * arg.batch / 512
    optimizer.clip_norm = 5.0
    tables = r"pos_embed(_\d+)?|.*/relative_position_bias_table"
    optimizer.wd_mults = ((rf"(.*/)?(bias|scale)|{tables}", 0.0), (r".*", 1.0))
    config.warmup_percent = 100 * 20 / 300
    if arg.debug:
        debug(config, patch_size=2)
        del config.model.depth, config.model.heads
        config.model.depths, config.model.heads, config.model.window_size = (2, 2), (2, 4), 4
    return config


def compact_cifar(arg: str, model: str, dataset: str) -> ConfigDict:
    """CIFAR-10 or CIFAR-100 as Compact Transformers train on it: AdamW, 300 + 10 epochs, mixup and CutMix.

    Source: SHI-Labs/Compact-Transformers, `train.py` and `configs/datasets/cifar{10,100}.yml`. The whole set lies on
    the device and is augmented there. `arg`: "name=value,..." of

        path      the data_dir of TFDS, or with source=arrays the directory of train.npz and val.npz
        source    tfds (cifar10 or cifar100) | arrays | folder
        join, pe  joining method and position embedding
        seed, epochs, batch
        erase     probability of random erasing (0 for CCT-7/3x1 on CIFAR-10, else 0.25, as published)
        debug     a run of two steps of a tiny model on scikit-learn's digits

    `epochs` are those of the cosine; cool-down follows, ten epochs after 300.
    """
    erase = 0.0 if (model, dataset) == ("cct_7_3x1", "cifar10") else 0.25
    arg = parse_arg(
        arg, path="", source="tfds", join="lape", pe="learnable", seed=0, epochs=300.0, batch=128, erase=erase,
        debug=False,
    )  # fmt: skip
    config = start(arg, model)

    config.data.name = dataset if arg.source == "tfds" else ""
    config.data.val_split = "test" if arg.source == "tfds" else "val"
    config.data.image_size = 32
    config.data.crop_ratio = 1.0
    config.data.mean, config.data.std = CIFAR[dataset]["mean"], CIFAR[dataset]["std"]
    config.data.resident = True
    config.data.scale = (0.8, 1.0)
    config.data.interpolation = "random"
    _strong_augmentation(config)
    config.augment.erase_prob = arg.erase
    config.augment.order = "mix_then_erase"

    config.optimizer.schedule = "epoch"
    config.total_epochs = arg.epochs * 310 / 300
    config.warmup_percent = config.cooldown_percent = 100 * 10 / 310
    config.optimizer.weight_decay = 0.06
    # The position table and the class token decay: the reference exempts one-dimensional tensors only.
    config.optimizer.wd_mults = ((r"(.*/)?(bias|scale|gamma)", 0.0), (r".*", 1.0))
    if dataset == "cifar10":
        config.optimizer.lr, config.optimizer.warmup_lr = 5.5e-4, 1e-5
        config.mix_percent = 100 * 175 / 310
    else:
        config.optimizer.lr, config.optimizer.warmup_lr = 6e-4, 1e-6
    return debug(config, patch_size=None if model.startswith("cct") else 8) if arg.debug else config


def _imagenet(config: ConfigDict) -> None:
    config.dtype = "bfloat16"
    config.model.drop_path = 0.1
    config.data.name = "imagenet2012" if config.data.source == "tfds" else ""
    config.data.val_split = "validation" if config.data.source == "tfds" else "val"
    config.data.threads = 32
    _strong_augmentation(config)


def _strong_augmentation(config: ConfigDict) -> None:
    """What DeiT introduced, and the others took over."""
    config.augment.flip = True
    config.augment.policy = "rand-m9-mstd0.5-inc1"
    config.augment.erase_prob = 0.25
    config.augment.mixup, config.augment.cutmix = 0.8, 1.0
    config.loss.label_smoothing = 0.1
