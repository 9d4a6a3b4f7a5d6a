"""A small Mask R-CNN on canvases of scikit-learn's handwritten digits: nothing to download.

    python -m lape_jax.main --config=configs/detect_digits.py --workdir=runs/detect_digits
    python -m lape_jax.main --config=configs/detect_digits.py:join=default --workdir=runs/detect_digits_default

239 images for training and 59 for validation, of six digits each in random places and sizes; their masks are their ink.
20 epochs, from nothing.

Arguments: join, pe, seed, epochs, batch, debug (tiny, two steps).
"""

from lape_jax.config.reading import parse_arg
from lape_jax.tasks.detect import recipes


def get_config(arg=""):
    arg = parse_arg(arg, join="lape", pe="learnable", seed=0, epochs=20.0, batch=8, debug=False)
    shared = ",".join(f"{key}={arg[key]}" for key in ("join", "pe", "seed", "batch", "epochs"))
    config = recipes.mask_rcnn(f"source=digits,{shared}", "mask_rcnn_vit_adapter_ti")
    config.model.update(recipes.SMALL, proposals=48, pre_nms_train=200, pre_nms_test=100, detections=16)
    config.data.image_size = 96
    config.data.threads = 2
    config.detect.max_objects = 6
    recipes.small(config, times=1)
    config.augment.flip = False
    config.optimizer.lr, config.optimizer.warmup_lr = 1e-3, 1e-6
    config.warmup_steps, config.warmup_percent = None, 5.0
    config.log_percent, config.eval_epochs, config.checkpoint_epochs = 5.0, None, None
    config.eval_percent = config.checkpoint_percent = 50.0
    if arg.debug:
        recipes.debug(config)
    return config
