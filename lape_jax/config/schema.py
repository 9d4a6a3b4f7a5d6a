"""The configuration of a run: the keys that do not depend on its task, with their defaults.

A config file is a Python file with `get_config(arg: str = "") -> ConfigDict`. It starts from all keys, those of the
tasks among them, which are locked, so a misspelt key stops at its line:

    from lape_jax.config.reading import parse_arg
    from lape_jax.tasks.config import base

    def get_config(arg=""):
        arg = parse_arg(arg, join="lape", debug=False)
        config = base()
        config.model.join = arg.join
        config.total_epochs = 1.0 if arg.debug else 60.0
        ...
        return config
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# A duration is given in exactly one of these units, as e.g. `eval_epochs`. A percentage is of the total, 0 to 100.
DURATIONS = {
    "total": ("steps", "epochs", "examples"),
    "warmup": ("steps", "epochs", "examples", "percent"),
    "log": ("steps", "epochs", "examples", "percent"),
    "eval": ("steps", "epochs", "examples", "percent"),
    "checkpoint": ("steps", "epochs", "examples", "percent"),
    "cooldown": ("steps", "epochs", "examples", "percent"),
    "mix": ("steps", "epochs", "examples", "percent"),
}
# What a run keeps from its beginning, whatever its config file says since, unless the command line changes it; and what
# runs had before there was such a key.
KEPT = {"data.orientation": "stored"}
# How a model runs, decided by the devices; and what runs had before there was such a choice.
HOW = {"model.attention": "xla", "model.unroll": 1, "model.remat": "none"}
OPTIONAL = ("cooldown", "mix")  # durations that a config may leave out
_UNIT_TYPES = {"steps": int, "epochs": float, "examples": int, "percent": float}


def common() -> ConfigDict:
    """The keys that runs of every task have, with defaults and types, not yet locked: tasks add their own.

    Durations have no default: a config sets one unit of each of `total`, `warmup`, `log`, `eval`, `checkpoint`, and may
    set `cooldown` (the end of the run, at min_lr, after the schedule) and `mix` (how long mixup and CutMix are on).
    """
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the data order, augmentation and dropout
    config.task = "classify"  # a name in `lape_jax.tasks.TASKS`
    config.dtype = "float32"  # of the computation, or "bfloat16"; parameters are float32
    config.init = init = ConfigDict()  # the weights to start from, if not fresh ones
    init.weights = ""  # a file, or the workdir of a run; what fits is loaded, and all is said
    init.pe_norm = "norm1"  # what PE norms start as where those weights have none: "ones", or the block's "norm1"
    # Name, and any field of that model: models.create(**config.model). A field may be of several types.
    config.model = ConfigDict({"name": "deit_ti", **{key.partition(".")[2]: "auto" for key in HOW}}, type_safe=False)
    config.deterministic = False  # on GPUs: only operations that add up in a fixed order
    # Directory of compiled programs: "auto" for one beside the workdir (not on CPUs), "off" for none.
    config.compilation_cache = "auto"

    config.data = data = ConfigDict()
    data.source = "digits"  # one of the task's sources
    data.path = ""  # where it lies; of tfds the data_dir
    data.name = ""  # tfds: the data set's name
    data.match = "name"  # how classes of data are those of a finished run: by "name", or number by number: "order"
    data.train_split = "train"
    data.val_split = "val"
    data.image_size = 224  # to segment: side of the training crops and of the evaluation's windows
    data.channels = 3
    data.orientation = "stored"  # image files as they are stored, or as EXIF says that they are shown: "view"
    data.mean = (0.485, 0.456, 0.406)  # of images scaled to [0, 1]: x -> (x - mean) / std
    data.std = (0.229, 0.224, 0.225)
    data.resident = False  # keep the whole set on the device (small sets)
    data.repeats = 1  # copies of an image in an epoch: 3 = DeiT's repeated augmentation
    data.repeat_ranks = 4  # ... whose copies fall to so many emulated processes
    data.threads = 8  # that read and decode on each host: as many as it has cores; more if a network is slow
    data.prefetch = 2  # whole batches that each host keeps ready, beside those its threads work on
    data.max_corrupt = 10  # distinct corrupt images skipped in training before the run stops

    config.augment = ConfigDict({"flip": False})  # horizontal, with probability 1/2
    config.batch_size = 128  # of one optimizer step, over all devices
    config.eval_batch_size = 256  # images, or windows of images to segment
    config.steps_per_dispatch = 100  # steps that one call of a resident run makes on the device

    for name, units in DURATIONS.items():
        for unit in units:
            config[f"{name}_{unit}"] = placeholder(_UNIT_TYPES[unit])

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw | sgd
    # Linear warm-up into a cosine, where the rate changes every "step" (or "step_prefix": the cosine begins after the
    # warm-up, and not under it), every "epoch", or there one late: "epoch_lag". Or by step "poly", a polynomial,
    # "poly_warm", whose warm-up multiplies the falling rate, or "multistep", with such a warm-up, too.
    optimizer.schedule = "step"
    optimizer.power = 0.9  # poly, poly_warm: exponent
    optimizer.milestones = ()  # multistep: after these shares of the run, as (27 / 36, 33 / 36), the rate is x 0.1
    optimizer.lr = 1e-3  # at the peak; for a batch of `lr_batch` images if that is set, in proportion for others
    optimizer.lr_batch = 0
    optimizer.warmup_lr = 1e-6
    optimizer.min_lr = 1e-5
    optimizer.weight_decay = 0.05
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8
    optimizer.momentum = 0.9  # sgd
    optimizer.nesterov = False  # sgd
    optimizer.clip_norm = 0.0  # of the global gradient norm; 0 = off
    optimizer.accumulate = 1  # micro-batches per step
    # (regex of the parameter's path, factor): first match wins; 0 = frozen. Of blocks also a factor for each layer.
    optimizer.lr_mults = ((".*", 1.0),)
    optimizer.layer_decay = 1.0  # and the rate is x so much per block, from the last to the patch embedding; 1 = off
    optimizer.wd_mults = ()  # the same for weight decay; () = the rule of the published recipe

    config.ema_decay = 0.0  # of the exponential moving average (EMA) of the weights, evaluated beside them; 0 = off
    config.distributed = distributed = ConfigDict()  # over several processes; unset = from the environment
    distributed.coordinator = ""  # host:port of process 0
    distributed.process_id = -1
    distributed.process_count = 0
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # devices on each axis, -1 = the rest
    config.sharding = ((".*", "replicate"),)  # (regex of the parameter's path, strategy): first match wins
    config.wandb = ""  # project on Weights & Biases that the metrics go to, too (extra `wandb`)
    config.report = True  # at the end of training: report.md and figures/ in the workdir
    config.keep_checkpoints = 3  # the newest so many, and the best
    return config
