"""The published training recipe, and a small one; the files in configs/ add model, hardware and numbers."""

from ml_collections import ConfigDict

from lape_jax.config.reading import parse_arg
from lape_jax.errors import UserError, nearest
from lape_jax.tasks import recipe_base
from lape_jax.tasks.detect.groups import DETECTION_WD_MULTS

# Epochs, and those after which the rate is x 0.1.
SCHEDULES = {"1x": (12, (8, 11)), "3x": (36, (27, 33))}
# Fields of a model that learns the built-in digits, or next to nothing.
SMALL = {"width": 64, "depth": 4, "heads": 4, "spatial_width": 32, "deform_heads": 4, "channels": 32, "hidden": 128}
TINY = {
    **{"width": 16, "depth": 2, "heads": 2, "interactions": 2, "spatial_width": 8, "deform_heads": 2},
    **{"channels": 16, "hidden": 32, "pre_nms_train": 100, "pre_nms_test": 50, "proposals": 30, "detections": 10},
}


def mask_rcnn(arg: str, model: str) -> ConfigDict:
    """COCO as ViT-Adapter and LaPE train it: Mask R-CNN, multi-scale, AdamW, from ImageNet's weights.

    Source: czczup/ViT-Adapter, `detection/configs/mask_rcnn/mask_rcnn_deit_adapter_tiny_fpn_3x_coco.py`. `arg`:
    "name=value,..." of

        path      the directory of annotations/, train2017/ and val2017/; of source=json that of the files it names; of
                  tfds the one in which `python -m lape_jax.prepare objects` has written it, as coco
        source    coco | tfds (coco) | json | digits
        init      weights to start from: of a DeiT, a file or the workdir of a run
        join, pe  joining method and position embedding
        schedule  3x (36 epochs) | 1x (12)
        epochs    instead, the rate falls at the same shares of the run
        seed, batch
        debug     a run of two steps of a tiny model on scikit-learn's digits

    The learning rate does not follow the batch, as in LaPE and MPVG, which train with 8 images.
    """
    arg = parse_arg(
        arg, path="", source="coco", init="", join="lape", pe="learnable", seed=0, schedule="3x", epochs=0.0, batch=16,
        debug=False,
    )  # fmt: skip
    if arg.schedule not in SCHEDULES:
        raise UserError(f"config argument schedule={nearest(arg.schedule, SCHEDULES)}")
    epochs, falls = SCHEDULES[arg.schedule]
    arg.epochs = arg.epochs or float(epochs)
    config = recipe_base.start(arg, model)
    config.task = "detect"
    config.init.weights = arg.init
    config.data.name = "coco" if arg.source == "tfds" else ""
    if arg.source in ("coco", "tfds"):
        config.data.train_split, config.data.val_split = "train2017", "val2017"
    config.data.orientation = "view"  # as mmcv decodes
    config.data.threads = 16
    config.augment.flip = True
    config.eval_batch_size = 8

    optimizer = config.optimizer
    optimizer.schedule, optimizer.milestones = "multistep", tuple(fall / epochs for fall in falls)
    optimizer.lr, optimizer.warmup_lr, optimizer.min_lr = 1e-4, 1e-7, 0.0
    optimizer.weight_decay, optimizer.wd_mults = 0.05, DETECTION_WD_MULTS
    config.warmup_steps = 500
    if arg.debug:
        debug(config)
    return config


def debug(config: ConfigDict) -> None:
    """The same recipe with a tiny model on digits, for two steps."""
    recipe_base.debug(config, patch_size=None)
    config.model.update(TINY)
    small(config, 1)
    config.detect.max_objects = 8
    config.batch_size, config.eval_batch_size, config.mix_percent = 4, 8, None


def small(config: ConfigDict, times: int) -> None:
    """Images as large as those of the built-in digits, so many times enlarged."""
    detect = config.detect
    detect.canvas = (96 * times, 128 * times)
    detect.short, detect.long, detect.crop_short = (80 * times, 88 * times, 96 * times), 128 * times, ()
    detect.test_short, detect.test_long = 96 * times, 128 * times
