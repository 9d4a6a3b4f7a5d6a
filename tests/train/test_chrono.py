from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.tasks.config import base
from lape_jax.train import chrono
from lape_jax.train.chrono import Chrono, flops_per_image, peak_flops, steps, training_flops


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("eval_steps", 7, 7),
        ("eval_epochs", 2.5, 28),  # 27.5 of 11 steps each, to the nearest even
        ("eval_epochs", 0.01, 1),  # at least one
        ("eval_examples", 1000, 8),  # 7.8 of 128
        ("eval_percent", 5.0, 15),
        ("warmup_steps", 0, 0),  # but none means none
        ("warmup_percent", 0.1, 1),
    ],
)
def test_steps(key, value, expected):
    config = base()
    config[key] = value
    name = key.partition("_")[0]
    assert steps(config, name, batch_size=128, steps_per_epoch=11, total_steps=300) == expected


def test_steps_of_no_or_two_units():
    config = base()
    with pytest.raises(UserError, match=r"the total duration needs one of total_steps, .*; the config sets none"):
        steps(config, "total", batch_size=1, steps_per_epoch=1)
    config.total_steps, config.total_epochs = 3, 3.0
    with pytest.raises(UserError, match="the config sets total_steps and total_epochs"):
        steps(config, "total", batch_size=1, steps_per_epoch=1)


def test_chrono():
    now = [100.0]
    chrono = Chrono(100, 8, flops_per_image=30.0, peak=6000.0, devices=2, clock=lambda: now[0])
    now[0] += 30  # compiling the first step does not count
    chrono.start(1, waited=9.0)
    assert (chrono.eta, chrono.img_per_sec) == (None, 0.0)
    assert chrono.tick(1, 9.0) == {}

    now[0] += 4.0
    scalars = chrono.tick(11, 10.0)  # 80 images in 4 s, 1 s of it waiting: 20 * 30 FLOP/s of 6000
    assert scalars == {"img_per_sec": 20.0, "img_per_sec_per_device": 10.0, "data_wait_frac": 0.25, "mfu": 0.1}
    assert chrono.eta == pytest.approx(0.4 * 89)

    with chrono.paused():
        now[0] += 6.0
    now[0] += 2.0
    scalars = chrono.tick(21, 10.0)  # 80 images in 2 s beside the pause
    assert scalars == {"img_per_sec": 40.0, "img_per_sec_per_device": 20.0, "data_wait_frac": 0.0, "mfu": 0.2}
    assert chrono.eta == pytest.approx(12 / 20 * 79)  # with its share of pauses
    assert chrono.img_per_sec == pytest.approx(160 / 6)
    assert chrono.seconds == pytest.approx(12)


def test_chrono_without_flops_says_nothing_of_mfu():
    now = [0.0]
    chrono = Chrono(10, 8, clock=lambda: now[0])
    now[0] += 1.0
    assert chrono.tick(1) == {"img_per_sec": 8.0, "img_per_sec_per_device": 8.0, "data_wait_frac": 0.0}


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _):
        return x + nn.gelu(nn.Dense(self.width)(x)), None


class Toy(nn.Module):
    """An 8x8x3 image in 4x4 patches, `depth` layers under a scan, a head of 10."""

    unroll: int = 1
    depth: int = 3
    width: int = 16
    input_shape = (8, 8, 3)

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.width, (4, 4), (4, 4))(images).reshape(len(images), 4, self.width)
        stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        scan = nn.scan(nn.remat(Layer), **stacked, length=self.depth, unroll=self.unroll)
        x, _ = scan(self.width)(x, None)
        return nn.Dense(10)(x.mean(1)), {}


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))


@pytest.mark.parametrize("unroll", [1, 3])
def test_flops_of_a_scanned_model(unroll):
    model = Toy(unroll)
    variables = shapes_of(model)
    patches = 4 * (4 * 4 * 3) * 16
    layers = 3 * (4 * 16 * 16)
    head = 16 * 10
    assert flops_per_image(model, variables) == 2 * (patches + layers + head)


@pytest.mark.slow
def test_flops_of_swin_t():
    """4.5e9 multiply-adds, as published."""
    model = models.create("swin_t")
    shapes = {"params": model.param_shapes()}
    blocks = 0
    for stage, depth in enumerate(model.depths):
        tokens, width = (56 * 56) >> 2 * stage, 96 << stage
        blocks += depth * tokens * (12 * width * width + 2 * 49 * width)
        blocks += 4 * width * 2 * width * (tokens >> 2) if stage < 3 else 0
    assert flops_per_image(model, shapes) == 2 * (56 * 56 * 48 * 96 + blocks + 768 * 1000) == 8_981_133_312


def test_flops_of_deit_ti():
    model = models.create("deit_ti", join="lape", remat="full")
    n, d = 197, 192
    layer = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 4 * d
    expected = 2 * (196 * (16 * 16 * 3) * d + 12 * layer + d * 1000)
    assert flops_per_image(model, {"params": model.param_shapes()}) == expected == 2_507_366_400


def test_a_step_is_three_forward_passes_and_one_of_the_teacher():
    student, teacher = Toy(depth=1), Toy(depth=4)
    (one, variables), (other, taught_by) = (
        (flops_per_image(model, shapes), shapes) for model in (student, teacher) for shapes in [shapes_of(model)]
    )
    assert training_flops(student, variables) == 3 * one
    assert training_flops(student, variables, (teacher, taught_by)) == 3 * one + other


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
    ],
)
def test_peak_of_known_devices(kind, teraflops):
    device = mock.Mock(spec=jax.Device, device_kind=kind)
    assert peak_flops([device] * 2) == 2 * teraflops * 1e12


def test_peak_of_cpu_devices_is_measured_once_for_all():
    with mock.patch.object(chrono, "_measured_peak", wraps=chrono._measured_peak) as measured:
        peak = peak_flops(jax.devices())
    measured.assert_called_once()
    assert 1e9 < peak < 1e14
