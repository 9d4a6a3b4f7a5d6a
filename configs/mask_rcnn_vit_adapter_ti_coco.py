"""Mask R-CNN on ViT-Adapter-Ti (28.1 million parameters) on COCO, as ViT-Adapter and LaPE train it.

    python -m lape_jax.main --config=configs/mask_rcnn_vit_adapter_ti_coco.py:path=DIR,init=WEIGHTS \
        --workdir=runs/mask_rcnn_ti
    python -m lape_jax.main --config=configs/mask_rcnn_vit_adapter_ti_coco.py:path=DIR,join=default,init=WEIGHTS \
        --workdir=runs/mask_rcnn_ti_default

DIR is COCO as its authors publish it: annotations/instances_train2017.json and instances_val2017.json, train2017/ and
val2017/. WEIGHTS are those of DeiT-Ti with the same joining: a file, or the workdir of its run; without `init` training
starts from nothing. 36 epochs (`schedule=1x`: 12) of 16 images on canvases of 1024 x 1024 pixels, on a TPU slice or
several GPUs; the published runs had 8 GPUs (ViT-Adapter) and 4 (LaPE).
Published AP of boxes / masks, default -> LaPE: 45.6 / 40.7 -> 46.3 / 41.2 (LaPE); without LaPE 46.0 / 41.0
(ViT-Adapter).
Not yet trained to the end with this code.
Arguments: see `lape_jax.tasks.detect.recipes.mask_rcnn`.
"""

from lape_jax.tasks.detect import recipes


def get_config(arg=""):
    return recipes.mask_rcnn(arg, "mask_rcnn_vit_adapter_ti")
