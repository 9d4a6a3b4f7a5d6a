"""A small ViT on scikit-learn's handwritten digits: 1,797 real 8x8 images, 20 % of each class held out.

python -m lape_jax.main --config=configs/digits.py --workdir=runs/digits
python -m lape_jax.main --config=configs/digits.py:join=default --workdir=runs/digits_default
python -m lape_jax.sweep --config=configs/digits.py:table7 --out=runs/table7

Sweeps: table1 and table2 (small models of each family x joining), table7 (kinds of PE x joining), table8 (functions of
the PE), with arguments as above, such as table7,epochs=30.
"""

from lape_jax.train import sweeps
from lape_jax.train.config import base, parse_arg

_UPSCALED = (("data.image_size", "32"), ("model.patch_size", "8"))


def _model(name, *overrides, **fields):
    fields = (("model.name", name), *((f"model.{field}", str(value)) for field, value in fields.items()))
    return sweeps.Model("digits.py", overrides=(*fields, *overrides))


# T2T-ViT is not among them: its tokens are 16 pixels apart.
MODELS = {
    "table1": {
        "ViT": sweeps.Model("digits.py"),
        "Swin": _model("swin_t", patch_size=1, depths=(2, 4), heads=(2, 4), window_size=4),
        "CeiT": _model("ceit_ti", *_UPSCALED, depth=6),
    },
    "table2": {
        "ViT-Lite": _model("vit_lite_6_4", depth=6),
        "CVT": _model("cvt_6_4", depth=6),
        "CCT": _model("cct_6_3x1", depth=6),
    },
}


def sweep(arg=""):
    return sweeps.paper(arg, "digits.py", seeds=range(5), models=MODELS)


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
