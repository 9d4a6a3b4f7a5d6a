"""What decays in published recipes of detectors, as `config.optimizer.wd_mults`."""

# ViT-Adapter's Mask R-CNN: all but the parameters with one of these words in their name. So what decays is 1-D in part:
# layer scales, the injectors' gamma, and the scales of the spatial prior's BatchNorms, which no "norm" names.
# Source: czczup/ViT-Adapter, `detection/configs/mask_rcnn/mask_rcnn_deit_adapter_tiny_fpn_3x_coco.py`, `paramwise_cfg`.
DETECTION_WD_MULTS = ((r".*(level_embed|pos_embed|norm|bias).*", 0.0), (r".*", 1.0))
