import pytest
from ml_collections import ConfigDict

from lape_jax.config.reading import parse_arg, to_json
from lape_jax.errors import UserError
from lape_jax.tasks.config import base, from_json, override, resolve, validate

AUTO = dict.fromkeys(("attention", "unroll", "remat"), "auto")  # what the devices decide


def make(**values):
    """A valid config, with `values` put in by dotted key (dots written as __)."""
    config = base()
    config.total_epochs, config.warmup_percent = 60.0, 5.0
    config.log_steps = config.eval_steps = config.checkpoint_steps = 100
    for key, value in values.items():
        *groups, leaf = key.split("__")
        parent = config
        for group in groups:
            parent = parent[group]
        parent[leaf] = value
    return config


def test_base_is_locked_but_for_the_model():
    config = base()
    with pytest.raises(AttributeError):
        config.batchsize = 3
    with pytest.raises(AttributeError):
        config.optimizer.learning_rate = 3.0
    config.model.width = 96
    assert config.model.to_dict() == {"name": "deit_ti", "width": 96, **AUTO}


def test_parse_arg():
    arg = parse_arg("join=default, debug,seed=3", join="lape", debug=False, seed=0, lr=1e-3)
    assert arg.to_dict() == {"join": "default", "debug": True, "seed": 3, "lr": 1e-3}
    assert parse_arg("debug=false,lr=2", debug=True, lr=1e-3).to_dict() == {"debug": False, "lr": 2.0}
    assert parse_arg("", seed=0).seed == parse_arg(None, seed=0).seed == 0


@pytest.mark.parametrize(
    ("arg", "path", "seed"),
    [
        (r"path=/a\,b,seed=1", "/a,b", 1),
        (r"seed=1,path=\,\,", ",,", 1),
        ("path='/a, b' ,seed=1", "/a, b", 1),
        ('path="/it\'s,a",seed=1', "/it's,a", 1),
        ("path=/it's,seed=1", "/it's", 1),
        ("path='seed=2,',seed=1", "seed=2,", 1),
        (r"path=C:\x,seed=1", r"C:\x", 1),
        ("path='/a,seed=1", "'/a", 1),
        ('path="",seed=1', "", 1),
    ],
)
def test_a_comma_in_a_value(arg, path, seed):
    assert parse_arg(arg, path="", seed=0).to_dict() == {"path": path, "seed": seed}


def test_a_comma_that_is_not_protected_says_how():
    with pytest.raises(UserError, match=r"argument 'b': 'b' is not one of path; a comma in a value is written as \\,"):
        parse_arg("path=/a,b", path="")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("jion=default", "'jion' is not one of debug, join, seed .did you mean 'join'"),
        ("seed=x", "config argument 'seed' is 'x': it must be an int"),
        ("debug=maybe", "config argument 'debug' is 'maybe': it must be true or false"),
        ("seed", "config argument 'seed' is '': it must be an int"),
        ("seed=1,seed=2", "'seed' is given twice"),
    ],
)
def test_parse_arg_errors(arg, message):
    with pytest.raises(UserError, match=message):
        parse_arg(arg, join="lape", debug=False, seed=0)


def test_override_reads_values_by_the_type_of_their_key():
    config = make()
    texts = {
        "batch_size": "64",
        "optimizer.lr": "1",
        "augment.flip": "True",
        "data.path": "/some/where",
        "data.mean": "[0.5]",
        "sharding": "(('.*/kernel', 'fsdp'), ('.*', 'replicate'))",
    }
    override(config, texts.items())
    assert (config.batch_size, config.optimizer.lr, config.augment.flip) == (64, 1.0, True)
    assert isinstance(config.optimizer.lr, float)
    assert (config.data.path, config.data.mean) == ("/some/where", (0.5,))
    assert config.sharding == ((".*/kernel", "fsdp"), (".*", "replicate"))


def test_override_takes_any_model_key_and_type():
    config = make(model__image_size=32)
    texts = {"image_size": "(28, 20)", "width": "96", "pe": "none", "layer_scale": "1e-4", "distilled": "true"}
    override(config, [(f"model.{key}", text) for key, text in texts.items()] + [("model.join", "None")])
    expected = {"image_size": (28, 20), "width": 96, "pe": "none", "layer_scale": 1e-4, "distilled": True}
    assert config.model.to_dict() == {"name": "deit_ti", "join": None, **AUTO, **expected}


def test_override_replaces_a_duration_given_in_another_unit():
    config = make()
    override(config, [("total_steps", "10"), ("eval_epochs", "0.5")])
    assert (config.total_steps, config.total_epochs) == (10, None)
    assert (config.eval_steps, config.eval_epochs) == (None, 0.5)
    validate(config)
    with pytest.raises(UserError, match=r"--config.total_steps and --config.total_epochs are the same duration"):
        override(config, [("total_steps", "10"), ("total_epochs", "1")])


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimzer.lr", "1", "unknown key config.optimzer.lr .did you mean config.optimizer.lr"),
        ("lr", "1", "unknown key config.lr .did you mean config.optimizer.lr"),
        ("total_step", "1", "did you mean config.total_steps"),
        ("augment.flipp", "1", "did you mean config.augment.flip"),
        ("xyzzy", "1", "unknown key config.xyzzy: the keys are .*batch_size"),
        ("seed.x", "1", "unknown key config.seed.x"),
        ("model.", "1", "unknown key config.model."),
        ("data", "1", "config.data is a group of keys"),
        ("batch_size", "abc", "config.batch_size is 'abc': it must be an int"),
        ("batch_size", "1.5", "config.batch_size is '1.5': it must be an int"),
        ("total_steps", "ten", "config.total_steps is 'ten': it must be an int"),
        ("optimizer.lr", "fast", "config.optimizer.lr is 'fast': it must be a finite number"),
        ("optimizer.lr", "nan", "config.optimizer.lr is 'nan': it must be a finite number"),
        ("augment.flip", "maybe", "config.augment.flip is 'maybe': it must be true or false"),
        ("data.mean", "0.5", "config.data.mean is '0.5': it must be a tuple such as"),
        ("data.mean", "(0.5,", "config.data.mean is .*: it must be a tuple"),
        ("data.mean", "({},)", "config.data.mean has {}"),
        ("model.width", "{}", "config.model.width has {}"),
    ],
)
def test_override_errors(key, text, message):
    with pytest.raises(UserError, match=message):
        override(make(), [(key, text)])


def test_resolve_completes_a_config_made_by_hand():
    config = resolve(ConfigDict({"batch_size": 8, "optimizer": {"lr": 1}, "data": {"mean": [0.5]}, "total_epochs": 2}))
    assert config.is_locked
    assert (config.batch_size, config.optimizer.lr, config.optimizer.beta1) == (8, 1.0, 0.9)
    assert (config.data.mean, config.total_epochs, config.seed) == ((0.5,), 2.0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 8}, "unknown key config.batchsize .did you mean config.batch_size"),
        ({"optimizer": {"lrs": 8}}, "unknown key config.optimizer.lrs .did you mean config.optimizer.lr"),
        ({"batch_size": "8"}, "config.batch_size is '8': it must be an int"),
        ({"batch_size": True}, "config.batch_size is True: it must be an int"),
        ({"batch_size": None}, "config.batch_size is None: it must be an int"),
        ({"augment": {"flip": 1}}, "config.augment.flip is 1: it must be true or false"),
        ({"data": 3}, "config.data is 3: it must be a group of keys"),
        ({"seed": {}}, "config.seed is {}: it must be one value"),
        ({"total_steps": 3, "total_epochs": 4.0}, "config.total_steps and config.total_epochs are the same duration"),
        ({"model": {"dtype": object}}, "config.model.dtype has .*object"),
    ],
)
def test_resolve_errors(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values)


def test_validate_accepts():
    validate(make())
    validate(make(data__source="folder", data__path="/data"))
    validate(make(warmup_percent=0.0))
    validate(make(optimizer__schedule="multistep", optimizer__milestones=(27 / 36, 33 / 36)))
    validate(make(optimizer__layer_decay=0.75, optimizer__lr_mults=(("blocks/.*", (0, 0.5, 1)), (".*", 1))))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"total_epochs": None},
            "config has no total duration: set one of config.total_steps, config.total_epochs, config.total_examples",
        ),
        ({"total_epochs": 0.0}, "config.total_epochs is 0.0: it must be above 0"),
        ({"warmup_percent": -1.0}, "config.warmup_percent is -1.0: it must be at least 0"),
        ({"warmup_percent": 101.0}, "config.warmup_percent is 101.0: it must be at most 100"),
        ({"batch_size": 0}, "config.batch_size is 0: it must be at least 1"),
        ({"data__prefetch": 0}, "config.data.prefetch is 0: it must be at least 1"),
        ({"batch_size": 9, "optimizer__accumulate": 2}, "config.batch_size 9 is no multiple of .*accumulate 2"),
        ({"dtype": "float23"}, "config.dtype: 'float23' is not one of .*did you mean 'float32'"),
        (
            {"augment__order": "mix_first"},
            "config.augment.order: 'mix_first' is not one of erase_then_mix, mix_then_erase",
        ),
        ({"data__source": "foldr"}, "config.data.source: 'foldr' is not one of .*did you mean 'folder'"),
        ({"data__source": "folder"}, "config.data.path is empty: data.source=folder needs it"),
        ({"data__channels": 1}, "config.data.mean has 3 values, but config.data.channels is 1"),
        ({"data__std": (0.5, 0.5, 0.0)}, "config.data.std is .*: it must be a tuple of numbers above 0"),
        ({"data__scale": (0.5, 0.2)}, "config.data.scale is .*: it must be a pair"),
        ({"ema_decay": 1.0}, "config.ema_decay is 1.0: it must be at least 0 .off. and below 1"),
        ({"mesh__fsdp": 0}, "config.mesh.fsdp is 0: it must be at least 1, or -1"),
        ({"optimizer__lr_mults": (("(", 1.0),)}, "config.optimizer.lr_mults is .*: it must be a tuple of .regex"),
        ({"optimizer__wd_mults": ((".*", "a"),)}, "config.optimizer.wd_mults is .*: it must be a tuple of .regex"),
        ({"optimizer__wd_mults": ((".*", (1, -1)),)}, "config.optimizer.wd_mults is .*: it must be a tuple of .regex"),
        ({"optimizer__wd_mults": ((".*", ()),)}, "config.optimizer.wd_mults is .*: it must be a tuple of .regex"),
        ({"optimizer__layer_decay": 0.0}, "config.optimizer.layer_decay is 0.0: it must be above 0 and at most 1"),
        ({"optimizer__layer_decay": 1.5}, "config.optimizer.layer_decay is 1.5: it must be above 0 and at most 1"),
        ({"optimizer__schedule": "poly_wram"}, "config.optimizer.schedule: 'poly_wram' .* mean 'poly_warm'"),
        (
            {"optimizer__schedule": "multistep"},
            "'multistep', and config.optimizer.milestones is empty: give the shares",
        ),
        (
            {"optimizer__milestones": (27, 33)},
            "milestones is .27, 33.: it must be a tuple of shares of the run that rise",
        ),
        (
            {"optimizer__milestones": (0.9, 0.7)},
            "milestones is .0.9, 0.7.: it must be a tuple of shares of the run that",
        ),
        ({"optimizer__milestones": ("a",)}, "milestones is .'a',.: it must be a tuple of shares of the run that rise"),
        ({"sharding": (".*", "replicate")}, "config.sharding is .*: it must be a tuple of .regex"),
    ],
)
def test_validate_errors(values, message):
    with pytest.raises(UserError, match=message):
        validate(make(**values))


def test_json_round_trip(tmp_path):
    config = make(
        model__image_size=(28, 20), model__layer_scale=None, optimizer__lr_mults=((".*bias", (0.5, 1)), (".*", 1.0))
    )
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    back = from_json(path)
    validate(back)
    assert back.to_dict() == config.to_dict()
    assert back.model.image_size == (28, 20)
    assert back.optimizer.lr_mults == ((".*bias", (0.5, 1)), (".*", 1.0))
    assert to_json(back) == path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config at"),
        ("{", "cannot be read as a config"),
        ("[]", "does not hold"),
        ('{"bath_size": 1}', "batch"),
    ],
)
def test_from_json_errors(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        from_json(path)
