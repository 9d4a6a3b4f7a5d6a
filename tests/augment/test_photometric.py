import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from lape_jax.augment import photometric
from lape_jax.augment.photometric import normalise
from tests.augment.samples import from_pillow, images, to_pillow
from tests.quick import jit

FACTORS = [0.0, 0.1, 0.19, 0.5, 0.7, 1.0, 1.19, 1.5, 1.81, 1.9, *np.random.default_rng(0).uniform(0.1, 1.9, 6)]

PEERS = {
    "invert": (lambda image, _: ImageOps.invert(image), [0]),
    "posterize": (ImageOps.posterize, range(1, 9)),
    "solarize": (ImageOps.solarize, [0, 1, 128, 199.1, 255, 256]),
    "solarize_add": (
        lambda image, amount: image.point(_solarize_add_table(amount, len(image.getbands()))),
        [0, 1, 99, 128],
    ),
    "color": (lambda image, factor: ImageEnhance.Color(image).enhance(factor), FACTORS),
    "contrast": (lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), FACTORS),
    "brightness": (lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), FACTORS),
    "grayscale": (lambda image, _: image.convert("L").convert(image.mode), [0]),
}


def _solarize_add_table(amount, channels):
    return [min(value + amount, 255) if value < 128 else value for value in range(256)] * channels


def test_normalise_by_hand():
    images = np.asarray([0, 51, 255, 102], np.uint8).reshape(1, 2, 1, 2)  # 0, 0.2, 1 and 0.4 of full scale
    found = jit(lambda images: normalise(images, (0.5, 0.1), (0.25, 0.1)))(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(-1), [-2, 1, 2, 3], rtol=1e-6)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", PEERS)
def test_equals_pillow(name, channels):
    batch = images()[..., :channels]
    peer, arguments = PEERS[name]
    operation = getattr(photometric, name)
    if name in ("invert", "grayscale"):
        compute = jax.jit(lambda batch, _: jax.vmap(operation)(batch))
    else:
        compute = jax.jit(jax.vmap(operation, (0, None)))
    for argument in arguments:
        argument = argument if isinstance(argument, int) else float(np.float32(argument))
        found = np.asarray(compute(batch, argument))
        assert found.dtype == np.uint8
        for ours, image in zip(found, batch, strict=True):
            np.testing.assert_array_equal(ours, from_pillow(peer(to_pillow(image), argument)), f"{name} {argument}")


def test_every_blend_of_two_values_equals_pillow():
    first, second = (values.astype(np.uint8) for values in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    blend = jax.jit(photometric.blend)
    factors = np.concatenate([np.arange(0, 201) / 100, np.random.default_rng(0).uniform(-1, 3, 60), [1e-6]])
    for factor in factors.astype(np.float32):
        found = blend(first[..., None], second[..., None], factor)
        expected = Image.blend(Image.fromarray(first), Image.fromarray(second), float(factor))
        np.testing.assert_array_equal(np.asarray(found)[..., 0], np.asarray(expected), f"factor {factor}")


def test_compiled_equals_op_by_op():
    image = jnp.asarray(images()[0])
    compiled = jax.jit(photometric.color)
    for factor in np.float32([0.37, 0.8, 1.81]):
        np.testing.assert_array_equal(compiled(image, factor), photometric.color(image, factor))


def test_luma_of_random_colours_equals_pillow():
    colours = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    found = jit(photometric.luma)(colours)
    np.testing.assert_array_equal(np.asarray(found)[..., 0], np.asarray(Image.fromarray(colours).convert("L")))


def test_no_bits_are_black():
    image = np.asarray([0, 7, 200, 255], np.uint8).reshape(2, 2, 1)
    posterize = jit(photometric.posterize)
    assert not np.asarray(posterize(image, 0)).any()
    assert not np.asarray(posterize(image, -1)).any()
    np.testing.assert_array_equal(np.asarray(posterize(image, 2)).ravel(), [0, 0, 192, 192])
    np.testing.assert_array_equal(posterize(image, 9), image)
