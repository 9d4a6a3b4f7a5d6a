"""What "auto" becomes on devices, and what of it is said."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.parallel import fit, sharding
from tests.nn.test_choice import CPU, HOPPER, TPU, Device

SIZES = {"num_classes": 10, "image_size": 16, "dtype": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Card(Device):
    memory: int = 0

    def memory_stats(self):
        return {"bytes_limit": self.memory}


def gpu(memory):
    device = np.empty((1, 1, 1), object)
    device[0, 0, 0] = Card(0, "gpu", "some gpu", 0, memory)
    return Mesh(device, ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("mesh", "unroll", "remat", "reason"),
    [
        (CPU.mesh, 1, "none", "unroll 1 (cpu), remat none (cpu)"),
        (TPU.mesh, 1, "attention", "unroll 1 (tpu), remat attention (tpu)"),
        (HOPPER.mesh, 6, "attention", "remat attention (the size of the device's memory is unknown)"),
        (gpu(2**40), 6, "none", "unroll 6 (gpu), remat none (the backward pass would keep about 0.0 of 1024 GiB)"),
        (gpu(2**20), 6, "attention", "remat attention (the backward pass would keep about"),
    ],
)
def test_what_auto_becomes(mesh, unroll, remat, reason):
    fitted = fit.training(models.create("vit_micro", **SIZES), mesh, (16, 16, 3), 64)
    assert (fitted.model.unroll, fitted.model.remat, str(fitted.model.attention)) == (unroll, remat, "auto")
    assert reason in fitted.reason


def test_what_is_given_stays():
    model = models.create("vit_micro", unroll=2, remat="full", attention="blocks", **SIZES)
    fitted = fit.training(model, HOPPER.mesh, (16, 16, 3), 64)
    assert (fitted.model.unroll, fitted.model.remat, str(fitted.model.attention)) == (2, "full", "blocks")
    assert fitted.reason == ""


def test_stages_are_unrolled_as_far_as_the_deepest():
    fitted = fit.training(models.create("swin_t", remat="none"), HOPPER.mesh, (224, 224, 3), 64)
    assert fitted.model.unroll == 6
    assert [encoder.unroll for encoder in fitted.model._encoders()] == [2, 2, 6, 2]


def test_what_a_backward_pass_keeps_grows_with_depth_and_falls_with_remat():
    kept = {
        (depth, remat): fit.kept_bytes(models.create("vit_micro", depth=depth, remat=remat, **SIZES), (16, 16, 3))
        for depth, remat in ((2, "none"), (4, "none"), (4, "attention"))
    }
    assert 1.7 < kept[4, "none"] / kept[2, "none"] < 2.1
    assert kept[4, "attention"] < kept[4, "none"] / 2
    # 17 tokens of 64 channels: at least queries, keys, values, four times as wide an MLP, twice, all in bfloat16
    assert kept[4, "none"] > 4 * 17 * 64 * (3 + 4 + 4) * 2


def test_what_attends_is_noted_and_put_in_words():
    model = fit.attention(models.create("vit_micro", **SIZES), sharding.data_mesh(jax.devices()[:1]))
    images = jnp.zeros((2, 16, 16, 3))
    with fit.noted() as found:
        jax.eval_shape(lambda variables: model.apply(variables, images)[0], model.variable_shapes())
    assert fit.described(found) == "xla for 17 tokens (no fused attention for cpu)"


def test_a_portable_model_knows_no_devices():
    model = models.create("vit_micro", **SIZES)
    for name, portable in (("auto", "auto"), ("cudnn", "auto"), ("xla", "xla"), ("blocks", "blocks")):
        assert fit.portable(fit.attention(model.clone(attention=name), HOPPER.mesh)).attention == portable


def test_devices_that_cannot_what_is_asked_for():
    model = fit.attention(models.create("vit_micro", attention="cudnn", **SIZES), CPU.mesh)
    with pytest.raises(UserError, match="attention='cudnn' is not possible here, use attention='auto': cuDNN needs"):
        model.param_shapes()


def test_only_gpus_are_told_to_be_deterministic():
    assert fit.compiler_options(True, HOPPER.mesh) == {"xla_gpu_deterministic_ops": True}
    assert fit.compiler_options(False, HOPPER.mesh) is None
    assert fit.compiler_options(True, CPU.mesh) is None
