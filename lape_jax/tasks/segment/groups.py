"""What decays in published recipes of segmentation models, as `config.optimizer.wd_mults`."""

# ViT-Adapter's UperNet: nothing that is 1-D in PyTorch (biases, scales of LayerNorms, PE norms and BatchNorms, layer
# scales, the injectors' gamma), and all else, the position table and `level_embed` too: the names that the official
# list exempts, `pos_embed` and `cls_token`, lack the prefix `backbone.` and match nothing.
# Source: czczup/ViT-Adapter, `segmentation/mmcv_custom/layer_decay_optimizer_constructor.py`.
UPERNET_WD_MULTS = ((r"(.*/)?(bias|scale|gamma)", 0.0), (r".*", 1.0))
