"""Mask R-CNN on ViT-Adapter-Ti on images of your own, with boxes and masks in COCO's format.

    python -m lape_jax.main --config=configs/detect.py:path=DIR,init=WEIGHTS --workdir=runs/detect
    python -m lape_jax.main --workdir=runs/detect \
        --config=configs/detect.py:path=DIR,train=train/_annotations.coco.json,val=valid/_annotations.coco.json

DIR holds train.json and val.json, or what `train` and `val` name, and the images: at the paths that these files have,
from where the files themselves are. Labelling tools export this as "COCO". WEIGHTS are those of a DeiT-Ti with the same
joining, or of a Mask R-CNN that was trained on something else; a few hundred images need them. `size` is the longer
side of the images that the model sees, a multiple of 64. `masks=False` learns boxes alone, for which the files need no
masks. AdamW as for COCO, flips and three sizes as the only augmentation: a start from which to try things. Time and
accuracy depend on the images. `debug` runs on scikit-learn's digits.
"""

from lape_jax.config.reading import parse_arg
from lape_jax.tasks.detect import recipes


def get_config(arg=""):
    arg = parse_arg(
        arg, path="", train="train.json", val="val.json", model="mask_rcnn_vit_adapter_ti", size=768, init="",
        join="lape", pe="learnable", masks=True, batch=8, epochs=36.0, seed=0, debug=False,
    )  # fmt: skip
    shared = ",".join(f"{key}={arg[key]}" for key in ("join", "pe", "seed", "batch", "epochs"))
    config = recipes.mask_rcnn(f"source=json,{shared}", arg.model)
    config.data.path, config.init.weights = arg.path, arg.init
    config.data.threads = 8
    detect, size = config.detect, arg.size
    detect.masks = arg.masks
    detect.train_json, detect.val_json = arg.train, arg.val
    detect.canvas, detect.crop_short = (size, size), ()
    detect.short, detect.long = (size // 2, size * 5 // 8, size * 3 // 4), size
    detect.test_short, detect.test_long = size * 3 // 4, size
    config.log_percent = 0.5
    config.eval_epochs = config.checkpoint_epochs = None
    config.eval_percent = config.checkpoint_percent = 10.0
    config.warmup_steps, config.warmup_percent = None, 5.0
    if arg.debug:
        recipes.debug(config)
    return config
