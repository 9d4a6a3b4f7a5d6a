"""A small ViT on scikit-learn's handwritten digits: 1,797 real 8x8 images, 20 % of each class held out.

python -m lape_jax.main --config=configs/digits.py --workdir=runs/digits
python -m lape_jax.main --config=configs/digits.py:join=default --workdir=runs/digits_default
"""

from lape_jax.train.config import base, parse_arg


def get_config(arg=""):
    arg = parse_arg(arg, join="lape", pe="learnable", seed=0, epochs=60.0, batch=64, debug=False)
    config = base()
    config.seed = arg.seed

    config.model.name = "vit_micro"
    config.model.width, config.model.heads, config.model.mlp_ratio = 32, 2, 2.0  # six blocks, 53,000 parameters
    config.model.patch_size = 2  # 4 x 4 patches
    config.model.join = arg.join
    config.model.pe = arg.pe

    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.crop_ratio = 1.0
    config.data.scale = config.data.ratio = (1.0, 1.0)  # no random crops
    config.data.resident = True

    config.batch_size = arg.batch
    config.total_epochs = arg.epochs
    config.warmup_epochs = 5.0
    config.log_epochs = 5.0
    config.eval_epochs = 10.0
    config.checkpoint_epochs = 10.0
    config.optimizer.lr = 1e-3
    config.loss.label_smoothing = 0.1

    if arg.debug:
        config.model.width, config.model.depth, config.model.heads, config.model.mlp_ratio = 16, 2, 2, 4.0
        config.total_epochs, config.warmup_epochs = 1.0, 0.5
        config.log_epochs = config.eval_epochs = config.checkpoint_epochs = 0.5
    return config
