"""A run that detects, small enough for tests: what it is made of."""

from tests import runs

DEBUG = f"{runs.ROOT}/configs/mask_rcnn_vit_adapter_ti_coco.py:debug"
RUN = {
    "total_steps": 4,
    "batch_size": 8,
    "log_percent": 50,
    "eval_percent": 100,
    "checkpoint_percent": 50,
    "optimizer.lr": 1e-3,
    "model.drop_path": 0.2,
    "model.score_threshold": 0.001,
    "ema_decay": 0.9,
}
