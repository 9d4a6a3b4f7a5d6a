"""A ViT on images of your own, or on any TFDS data set that was prepared as array_record.

    python -m lape_jax.main --config=configs/images.py:path=DIR --workdir=runs/mine
    python -m lape_jax.main --config=configs/images.py:tfds=cifar10,path=DATA_DIR,size=32,patch=4 --workdir=runs/cifar10

DIR holds one folder per class in train/ and val/. DeiT's learning rate and weight decay (Touvron et al.
2021), with random crops and flips as the only augmentation: a start from which to try things. Time and accuracy depend
on the images. `debug` without a path runs on scikit-learn's digits.
"""

from lape_jax.config.reading import parse_arg
from lape_jax.tasks.config import base


def get_config(arg=""):
    arg = parse_arg(
        arg, path="", tfds="", val="", model="deit_ti", size=224, patch=16, join="lape", pe="learnable", batch=128,
        epochs=100.0, seed=0, debug=False,
    )  # fmt: skip
    config = base()
    config.seed = arg.seed

    config.model.name = arg.model
    config.model.patch_size = arg.patch
    config.model.join = arg.join
    config.model.pe = arg.pe
    config.model.drop_path = 0.1

    config.data.source = "tfds" if arg.tfds else "folder"
    config.data.name = arg.tfds
    config.data.path = arg.path
    config.data.val_split = arg.val or ("test" if arg.tfds else "val")
    config.data.orientation = "view"
    config.data.image_size = arg.size
    config.data.crop_ratio = 0.875 if arg.size > 64 else 1.0
    config.data.scale = (0.3, 1.0)
    config.augment.flip = True

    config.batch_size = arg.batch
    config.total_epochs = arg.epochs
    config.warmup_percent = 5.0
    config.log_percent = 0.5
    config.eval_percent = 5.0
    config.checkpoint_percent = 5.0
    config.optimizer.lr, config.optimizer.lr_batch = 5e-4, 512
    config.optimizer.min_lr = 1e-6
    config.loss.label_smoothing = 0.1

    if arg.debug:
        config.model.width, config.model.depth, config.model.heads = 16, 2, 2
        config.batch_size, config.eval_batch_size, config.data.threads = 8, 128, 2
        config.total_epochs, config.total_steps = None, 2
        config.warmup_percent = config.log_percent = config.eval_percent = config.checkpoint_percent = 50.0
        if not arg.path and not arg.tfds:
            config.data.source = "digits"
            config.data.channels, config.data.mean, config.data.std = 1, (0.5,), (0.5,)
            config.data.image_size, config.model.patch_size = 8, 4
    return config
