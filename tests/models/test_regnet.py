"""RegNetY against timm's, alive (marker `peer`) and as golden numbers, and what can be known of it by hand."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.models.regnet import SqueezeExcite
from tests import peers
from tests.models.compare import assert_close
from tests.quick import jit
from tests.reference import regnet

GOLDEN = pathlib.Path(__file__).parent / "golden" / "regnet.npz"
TOLERANCE = 1e-10


def create(**settings):
    sizes = {**regnet.SIZES, "group_width": regnet.GROUP_WIDTH, "image_size": regnet.IMAGE_SIZE}
    return models.create("regnety_160", **{**sizes, **settings})


def leaves(model):
    """Shapes by path, which begins with the collection."""
    found = jax.tree_util.tree_leaves_with_path(model.variable_shapes())
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in found}


def torch_shapes(model):
    """Shapes by PyTorch's names."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.variable_shapes())
    return {name: array.shape for name, array in port.to_torch(zeros, model).items()}


@functools.cache
def answer(dtype="float64"):
    """The same arrays under the same names as in the golden file."""
    with jax.enable_x64(dtype == "float64"):
        model = create(dtype=dtype)
        given = regnet.weights(torch_shapes(model))
        variables = port.from_torch(given, model)
        if dtype != "float64":
            variables = jax.tree.map(np.float32, variables)
        logits, out = jit(model.apply)(variables, jnp.asarray(regnet.images(), model.dtype))
        assert {value.dtype for name, value in out.items() if name != "pre_logits"} == {model.dtype}
        stages = {name: np.asarray(x.astype(logits.dtype)).mean((1, 2)) for name, x in out.items() if x.ndim == 4}
        return {**stages, "logits": logits}


def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def assert_matches(expected):
    found = answer()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(name, found[name], value, TOLERANCE)


def test_matches_goldens():
    assert_matches(golden())


@pytest.mark.peer
def test_matches_live_timm():
    peers.timm()
    from tests.models.golden import make_regnet

    assert_matches(make_regnet.answer(make_regnet.network()))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_lower_precision(dtype, tolerance):
    logits = answer(dtype)["logits"]
    assert logits.dtype == jnp.float32
    assert_close("logits", logits, golden()["logits"], tolerance)


def test_regnety_160_is_the_published_one():
    model = models.create("regnety_160")
    assert model.stages == [(224, 112, 2), (448, 112, 4), (1232, 112, 11), (3024, 112, 1)]
    sizes = {path: math.prod(shape) for path, shape in leaves(model).items()}
    learned = [size for path, size in sizes.items() if path.startswith("params/")]
    assert sum(learned) == 83_590_140  # as timm counts
    # Each BatchNorm (stem, three per block, four shortcuts) has two buffers, and nothing else does.
    assert len(sizes) - len(learned) == 2 * (1 + 3 * 18 + 4)


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        # 8 + 8 j over 8: 1 2 3 4 5 6, log2 rounded: 0 1 2 2 2 3, so 8 16 32 32 32 64; then to multiples of 12
        ({}, [(8, 8, 1), (12, 12, 1), (36, 12, 3), (60, 12, 1)]),
        ({"group_width": 8}, [(8, 8, 1), (16, 8, 1), (32, 8, 3), (64, 8, 1)]),
        ({"group_width": 1000}, [(8, 8, 1), (16, 16, 1), (32, 32, 3), (64, 64, 1)]),
        ({"wa": 0, "depth": 2}, [(8, 8, 2)]),
        # 8 wm^1 = 20, a tie that rounds to even: 2.5 -> 2
        ({"wm": 2.5, "depth": 2, "group_width": 8}, [(8, 8, 1), (16, 8, 1)]),
    ],
)
def test_stages_by_hand(settings, stages):
    assert create(**settings).stages == stages


def test_parameter_names_and_shapes():
    model = create(depth=3, num_classes=3, in_channels=1)  # widths 8, 12, 36
    bn = {"bn/scale", "bn/bias"}
    names = {f"stem/{leaf}" for leaf in ("conv/kernel", *bn)} | {"head/kernel", "head/bias"}
    for stage in ("s1", "s2", "s3"):
        parts = ("conv1", "conv2", "conv3", "downsample")
        names |= {f"{stage}/b1/{part}/{leaf}" for part in parts for leaf in ("conv/kernel", *bn)}
        names |= {f"{stage}/b1/se/{fc}/{leaf}" for fc in ("fc1", "fc2") for leaf in ("kernel", "bias")}
    norms = [name.removesuffix("/scale") for name in names if name.endswith("/scale")]
    shapes = leaves(model)
    statistics = {f"batch_stats/{norm}/{leaf}" for norm in norms for leaf in ("mean", "var")}
    assert set(shapes) == {f"params/{name}" for name in names} | statistics
    assert shapes["batch_stats/s3/b1/conv3/bn/mean"] == (36,)
    shapes = {path.removeprefix("params/"): shape for path, shape in shapes.items()}
    assert shapes["stem/conv/kernel"] == (3, 3, 1, 8)
    assert shapes["s3/b1/conv1/conv/kernel"] == (1, 1, 12, 36)
    assert shapes["s3/b1/conv2/conv/kernel"] == (3, 3, 12, 36)  # of the input, a group sees 12 channels
    assert shapes["s3/b1/se/fc1/kernel"] == (1, 1, 36, 3)  # a quarter of the block's input, 12
    assert shapes["s3/b1/downsample/conv/kernel"] == (1, 1, 12, 36)
    assert shapes["head/kernel"] == (36, 3)


def test_squeeze_excite_by_hand():
    # Channel means 2 and -1 through fc1 = (1, 1) + 0 -> 1, fc2 = (ln 3, 0) + (0, -inf) -> gates 3/4 and 0.
    fc1 = {"kernel": np.ones((1, 1, 2, 1), np.float32), "bias": np.zeros(1, np.float32)}
    fc2 = {"kernel": np.asarray([[[[math.log(3), 0]]]], np.float32), "bias": np.asarray([0, -np.inf], np.float32)}
    x = jnp.asarray([[[[4.0, -3.0], [0.0, 1.0]]]])
    y = SqueezeExcite(1, jnp.float32).apply({"params": {"fc1": fc1, "fc2": fc2}}, x)
    np.testing.assert_allclose(y, [[[[3.0, 0.0], [0.0, 0.0]]]], rtol=1e-6)


def test_it_cannot_be_trained_and_says_which_images_it_takes():
    model, images = create(), np.zeros((1, *regnet.IMAGE_SIZE, 3), np.float32)
    assert model.input_shape == (40, 33, 3)
    with pytest.raises(UserError, match="RegNet is here for inference, as a teacher: it cannot be trained"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)
    with pytest.raises(UserError, match=r"takes images of shape \(40, 33, 3\), not \(33, 40, 3\)"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({key: 0}, f"{key}=0 is not positive") for key in ("num_classes", "in_channels", "w0", "depth")),
        ({"group_width": -1}, "group_width=-1 is not positive"),
        ({"stem_width": 0}, "stem_width=0 is not positive"),
        ({"image_size": (224, 0)}, r"image_size=\(224, 0\) is not positive"),
        ({"w0": 12}, "w0=12 is not a multiple of 8"),
        ({"wa": -1}, "wa=-1.0 is negative"),
        ({"wm": 1}, "wm=1.0 is not above 1"),
        ({"se_ratio": 0}, "se_ratio=0.0 is not positive"),
        ({"se_ratio": 0.01}, "se_ratio=0.01 leaves no channel of 8"),
        ({"pe": "learnable"}, "setting 'pe' is not one of num_classes, image_size"),
    ],
)
def test_wrong_settings_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message):
        create(**settings)
