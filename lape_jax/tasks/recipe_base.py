"""What the recipes of all tasks begin and end with."""

from ml_collections import ConfigDict

from lape_jax.tasks.config import base


def start(arg: ConfigDict, model: str) -> ConfigDict:
    """All keys, with what `arg` (seed, join, pe, source, path, batch, epochs) says, and evaluation once an epoch."""
    config = base()
    config.seed = arg.seed
    config.model.name = model
    config.model.join = arg.join
    config.model.pe = arg.pe
    config.data.source = arg.source
    config.data.path = arg.path
    config.batch_size = arg.batch
    config.total_epochs = arg.epochs
    config.log_percent = 0.05
    config.eval_epochs = 1.0
    config.checkpoint_epochs = 1.0
    return config


def debug(config: ConfigDict, patch_size: int | None = 8) -> ConfigDict:
    """The same recipe with a tiny model on 32 x 32 digits, for two steps; `patch_size` where a model has a choice."""
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    if patch_size is not None:
        config.model.patch_size = patch_size
    config.data.source = "digits"
    config.data.image_size = 32
    config.data.threads = 2
    config.batch_size, config.eval_batch_size, config.steps_per_dispatch = 16, 128, 2
    config.total_epochs = config.warmup_percent = config.cooldown_percent = None
    config.eval_epochs = config.checkpoint_epochs = config.checkpoint_steps = None
    config.total_steps, config.warmup_steps, config.mix_percent = 2, 0, 50.0
    config.log_percent = config.eval_percent = config.checkpoint_percent = 50.0
    return config
