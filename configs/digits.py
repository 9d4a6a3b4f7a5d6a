"""A small ViT on scikit-learn's handwritten digits: 1,797 real 8x8 images, 20 % of each class held out.

python -m lape_jax.main --config=configs/digits.py --workdir=runs/digits
python -m lape_jax.main --config=configs/digits.py:join=default --workdir=runs/digits_default
python -m lape_jax.sweep --config=configs/digits.py:table7 --out=runs/table7

Arguments: model (one of MODELS, each made small), join, pe, seed, epochs, batch, debug (tiny, one epoch).

Sweeps: table1 and table2 (models x {default, LaPE}), table7 (kinds of PE x joining), table8 (functions of the PE) and
table9 (joining x pooling, with PVG, MPVG and RoPE), with arguments as above, such as table7,epochs=30.
"""

from lape_jax.config.reading import parse_arg
from lape_jax.errors import UserError, nearest
from lape_jax.sweeps import grid as sweeps
from lape_jax.tasks.config import base

# What makes each model small and fit for 8 x 8 pixels; CeiT gets them enlarged to 32 x 32. T2T-ViT is not among them:
# its tokens are 16 pixels apart.
MODELS = {
    "vit_micro": {"patch_size": 2},  # 4 x 4 patches, six blocks, 53,000 parameters
    "vit_lite_6_4": {"patch_size": 2},
    "cvt_6_4": {"patch_size": 2},
    "cct_6_3x1": {},
    "swin_t": {"patch_size": 1, "depths": (2, 4), "heads": (2, 4), "window_size": 4},
    "ceit_ti": {"patch_size": 8, "depth": 6},
}
TABLES = {
    "table1": {"ViT": "vit_micro", "Swin": "swin_t", "CeiT": "ceit_ti"},
    "table2": {"ViT-Lite": "vit_lite_6_4", "CVT": "cvt_6_4", "CCT": "cct_6_3x1"},
}


def sweep(arg=""):
    models = {
        table: {row: sweeps.Model("digits.py", args=f"model={name}") for row, name in rows.items()}
        for table, rows in TABLES.items()
    }
    return sweeps.paper(arg, "digits.py", seeds=range(5), models=models)


def get_config(arg=""):
    arg = parse_arg(arg, model="vit_micro", join="lape", pe="learnable", seed=0, epochs=60.0, batch=64, debug=False)
    if arg.model not in MODELS:
        raise UserError(f"config argument model: {nearest(arg.model, MODELS)}")
    config = base()
    config.seed = arg.seed

    config.model.name = arg.model
    config.model.update({"width": 32, "heads": 2, "mlp_ratio": 2.0, **MODELS[arg.model]})
    config.model.join = arg.join
    config.model.pe = arg.pe

    config.data.source = "digits"
    config.data.image_size = 32 if arg.model == "ceit_ti" else 8
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.crop_ratio = 1.0
    config.data.scale = config.data.ratio = (1.0, 1.0)  # no random crops
    config.data.resident = True

    config.batch_size = arg.batch
    config.total_epochs = arg.epochs
    config.warmup_percent = config.log_percent = 100 * 5 / 60
    config.eval_percent = config.checkpoint_percent = 100 * 10 / 60
    config.optimizer.lr = 1e-3
    config.loss.label_smoothing = 0.1

    if arg.debug:
        config.model.width, config.model.mlp_ratio = 16, 4.0
        if arg.model != "swin_t":
            config.model.depth = 2
        config.total_epochs = 1.0
        for name in ("warmup", "log", "eval", "checkpoint"):
            config[f"{name}_percent"], config[f"{name}_epochs"] = None, 0.5
    return config
