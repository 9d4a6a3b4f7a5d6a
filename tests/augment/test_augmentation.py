"""The whole augmentation: what is on, in which order, and the same bits on any mesh."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.augment import augmentation
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from tests import quick
from tests.quick import jit

SIZE, CLASSES, BATCH = 8, 5, 16
EVERYTHING = {"resident": True, "flip": True, "erase_prob": 0.5, "mixup": 0.8, "cutmix": 1.0}


def config(channels=3, smoothing=0.1, **options):
    data = {
        "image_size": SIZE,
        "channels": channels,
        "mean": (0.5, 0.4, 0.3)[:channels],
        "std": (0.25, 0.2, 0.1)[:channels],
        "source": "folder",
        "resident": False,
        "scale": (0.3, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "interpolation": "random",
        "pad": 0,
    }
    augment = {
        "flip": False,
        "policy": "none",
        "color_jitter": 0.0,
        "erase_prob": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_prob": 1.0,
        "mix_switch_prob": 0.5,
        "order": "erase_then_mix",
    }
    for name, value in options.items():
        (data if name in data else augment)[name] = value
    return SimpleNamespace(
        task="classify",
        data=SimpleNamespace(**data),
        augment=SimpleNamespace(**augment),
        loss=SimpleNamespace(label_smoothing=smoothing),
    )


def batch(channels=3, unreadable=()):
    rng = np.random.default_rng(0)
    mask = np.ones(BATCH, np.float32)
    mask[list(unreadable)] = 0
    image = rng.integers(0, 256, (BATCH, SIZE, SIZE, channels), np.uint8)
    image[mask == 0] = 0
    return {"image": image, "label": rng.integers(0, CLASSES, BATCH).astype(np.int32), "mask": mask}


def mesh(data=1, fsdp=1, tensor=1):
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor), devices)


def compiled(cfg, where=None, jit=jit):
    """A function (batch, mixing, seed) of NumPy arrays, and the text of its program."""
    where = where or mesh()
    rows, everywhere = sharding.batch_sharding(where, BATCH), sharding.replicated(where)
    augment = augmentation.make(cfg, num_classes=CLASSES, mesh=where)
    arguments = batch(cfg.data.channels), jax.random.key(0), np.bool_(True)
    program = jit(augment, in_shardings=(rows, everywhere, everywhere)).lower(*arguments).compile()

    def run(batch, mixing=True, seed=0):
        result = program(batch, jax.random.key(seed), np.bool_(mixing))
        assert all(array.sharding.is_equivalent_to(rows, array.ndim) for array in result.values())
        return jax.tree.map(np.asarray, result)

    return run, program.as_text()


def augmented(cfg, batch, **options):
    return compiled(cfg)[0](batch, **options)


def normalised(image, channels=3):
    mean, std = np.asarray((0.5, 0.4, 0.3)[:channels]), np.asarray((0.25, 0.2, 0.1)[:channels])
    return (image / 255 - mean) / std


def pixels(images):
    return images * np.asarray((0.25, 0.2, 0.1)) * 255 + 255 * np.asarray((0.5, 0.4, 0.3))


def assert_same_on_meshes(cfg, shapes, rows, **options):
    one = compiled(cfg, **options)[0]
    expected = [one(rows, seed=seed) for seed in range(6)]  # of which some are mixup, others CutMix
    assert not np.array_equal(expected[0]["image"], expected[1]["image"])
    for shape in shapes:
        run, text = compiled(cfg, mesh(*shape), **options)
        for seed, result in enumerate(expected):
            jax.tree.map(np.testing.assert_array_equal, run(rows, seed=seed), result)
        # Shards trade rows with their mirror images; nobody collects a batch.
        found = set(re.findall(r"\b(all-[a-z]+|reduce-scatter|collective-permute)(?:-start)?\(", text))
        assert found == {"collective-permute"}


@pytest.mark.parametrize(
    ("order", "shapes"),
    quick.first(1, [("mix_then_erase", [(2, 2, 2)]), ("erase_then_mix", [(8, 1, 1), (4, 2, 1), (2, 2, 2)])]),
)
def test_the_same_bits_on_every_mesh(order, shapes):
    assert_same_on_meshes(config(**EVERYTHING, order=order), shapes, batch(unreadable=(2,)))


def test_mixing_rounds_alike_however_it_is_compiled():
    # What XLA fuses, and whether it contracts products and sums, depends on the mesh when it optimises in full.
    assert_same_on_meshes(config(mixup=0.8, cutmix=1.0), [(2, 2, 2)], batch(), jit=jax.jit)


def test_nothing_on():
    rows = batch(unreadable=(3,))
    found = augmented(config(smoothing=0.0), rows)
    assert {name: array.dtype for name, array in found.items()} == {
        "image": np.float32,
        "target": np.float32,
        "label": np.int32,
        "mask": np.float32,
    }
    np.testing.assert_allclose(found["image"], normalised(rows["image"]), atol=1e-5)
    np.testing.assert_array_equal(found["target"], np.eye(CLASSES)[rows["label"]])
    for name in ("label", "mask"):
        np.testing.assert_array_equal(found[name], rows[name])


def test_mixing_can_rest_and_labels_stay_smooth():
    rows, options = batch(), {"flip": True, "erase_prob": 0.5}
    run = compiled(config(**options, mixup=0.8, cutmix=1.0))[0]
    off = run(rows, mixing=False)
    jax.tree.map(np.testing.assert_array_equal, off, augmented(config(**options), rows))
    np.testing.assert_allclose(off["target"], 0.9 * np.eye(CLASSES)[rows["label"]] + 0.02, rtol=1e-6)
    assert not np.array_equal(run(rows)["target"], off["target"])


def test_how_often_batches_are_mixed_is_configured(monkeypatch):
    given = {}

    def draw(key, height, width, **options):
        given.update(options)
        return augmentation.mix.unmixed(height, width)

    monkeypatch.setattr(augmentation.mix, "draw", draw)
    cfg = config(mixup=0.8, cutmix=0.9, mix_prob=0.3, mix_switch_prob=0.4)
    jax.eval_shape(augmentation.make(cfg, num_classes=CLASSES, mesh=mesh()), batch(), jax.random.key(0), True)
    assert given == {"mixup": 0.8, "cutmix": 0.9, "prob": 0.3, "switch_prob": 0.4}


def test_partners_are_the_reversed_batch():
    rows = batch(unreadable=(2,))
    found = augmented(config(smoothing=0.0, mixup=0.8), rows)
    own = np.eye(CLASSES)[rows["label"]]
    pair = np.flatnonzero(rows["label"] != rows["label"][::-1])[0]  # where lambda shows
    lam = found["target"][pair, rows["label"][pair]]
    assert 0 < lam < 1
    share = np.full(BATCH, lam)
    share[BATCH - 1 - 2] = 1  # its partner could not be read
    readable = rows["mask"] > 0
    expected = share[:, None] * own + (1 - share[:, None]) * own[::-1]
    np.testing.assert_allclose(found["target"][readable], expected[readable], atol=1e-6)
    images = normalised(rows["image"])
    share = share[:, None, None, None]
    expected = share * images + (1 - share) * images[::-1]
    np.testing.assert_allclose(found["image"][readable], expected[readable], atol=1e-5)


@pytest.mark.parametrize("order", augmentation.ERASE_FIRST)
def test_order_of_erasing_and_mixing(order):
    flat = {**batch(), "image": np.full((BATCH, SIZE, SIZE, 3), 100, np.uint8)}
    flat["image"][: BATCH // 2] = 201
    found = augmented(config(erase_prob=1.0, mixup=0.8, order=order), flat, seed=1)["image"]
    # Mixed in 8 bits first, what is not erased is one whole number; the noise is whole. Erased first, it is mixed.
    values = pixels(found)
    shades = np.median(values, axis=(1, 2))
    whole = np.abs(shades - np.rint(shades)).max() < 1e-2
    assert whole == (order == "mix_then_erase")
    np.testing.assert_allclose(shades[: BATCH // 2], shades[:1].repeat(BATCH // 2, axis=0), atol=1e-2)
    noise = found[np.abs(values - shades[:, None, None]) > 1e-2]
    if order == "mix_then_erase":
        assert 0.85 < noise.std() < 1.15
        assert abs(noise.mean()) < 0.2


def test_rows_are_augmented_by_their_position():
    rows = batch()
    rows["image"][:] = rows["image"][0]
    run = compiled(config(resident=True, flip=True))[0]
    found = run(rows)["image"]
    assert len({image.tobytes() for image in found}) > BATCH / 2  # two may happen to have the same box
    np.testing.assert_array_equal(found, run(rows)["image"])
    halved = {name: np.concatenate([array[:8], np.zeros_like(array[8:])]) for name, array in rows.items()}
    np.testing.assert_array_equal(run(halved)["image"][:8], found[:8])
    assert not np.array_equal(run(rows, seed=1)["image"], found)


@pytest.mark.parametrize(
    ("options", "cropped"),
    [
        ({}, False),  # the host has cropped
        ({"resident": True, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}, False),
        ({"pad": 2}, True),
        ({"pad": 2, "resident": True}, True),
        ({"resident": True, "ratio": (1.0, 1.0)}, True),
    ],
)
def test_where_crops_are_made(options, cropped):
    rows = batch()
    rows["image"] |= 1  # no black pixel
    found = augmented(config(**options), rows)["image"]
    expected = normalised(rows["image"])
    changed = np.abs(found - expected).max(axis=(1, 2, 3)) > 1e-4
    assert changed.sum() > 8 if cropped else not changed.any()
    black = np.abs(pixels(found)).max(axis=3) < 1e-3
    assert black.any() == ("pad" in options)


def test_no_two_stages_or_rows_share_their_randomness(monkeypatch):
    def stamp(place):  # draws with the stage's keys into a pixel of its own
        bits = jax.vmap(lambda key: jax.random.bits(key, (3,), jnp.uint8))
        return lambda images, keys, *_: images.at[:, 0, place].set(bits(keys))

    monkeypatch.setattr(augmentation, "_pixel_stages", lambda _: tuple(map(stamp, range(4))))
    monkeypatch.setattr(augmentation.erase, "random_erase", stamp(4))
    monkeypatch.setattr(augmentation.photometric, "normalise", lambda images, mean, std: images.astype(jnp.float32))
    drawn = augmented(config(erase_prob=0.5), batch())["image"][:, 0, :5]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 5 * BATCH


def test_the_policy_comes_after_the_flip_and_before_the_colour_jitter(monkeypatch):
    made = {}

    def make(name, **options):
        made.update(options, name=name)

        def darken_left(images, keys):
            assert keys.shape == images.shape[:1]
            return images.at[:, :, : SIZE // 2].set(0)

        return darken_left

    def make_color_jitter(strength):
        return lambda images, keys: images.at[:, :, 0].set(int(10 * strength))

    monkeypatch.setattr(augmentation.policies, "make", make)
    monkeypatch.setattr(augmentation.policies, "make_color_jitter", make_color_jitter)
    found = pixels(augmented(config(policy="three_augment", flip=True, color_jitter=0.3), batch())["image"])
    assert made == {"name": "three_augment", "fill": (128, 102, 76), "interpolation": "random"}
    np.testing.assert_allclose(found[:, :, 0], 3, atol=1e-3)
    np.testing.assert_allclose(found[:, :, 1 : SIZE // 2], 0, atol=1e-3)  # in every image, flipped or not
    assert found[:, :, SIZE // 2 :].mean() > 100


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1"])
def test_policies_make_the_same_images_on_every_mesh(policy):
    cfg, rows = config(policy=policy, smoothing=0.0), batch()
    expected = augmented(cfg, rows)["image"]
    np.testing.assert_array_equal(compiled(cfg, mesh(2, 2, 2))[0](rows)["image"], expected)
    assert (np.abs(expected - normalised(rows["image"])).max(axis=(1, 2, 3)) > 1e-3).sum() > BATCH / 4


def test_digits_of_one_channel():
    rows = batch(channels=1)
    found = augmented(config(channels=1, **EVERYTHING), rows)
    assert found["image"].shape == rows["image"].shape
    assert np.isfinite(found["image"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "rand-m9", "channels": 1}, "'rand-m9' needs colour images, and config.data.channels is 1"),
        ({"policy": "rand-foo1"}, "config.augment.policy: "),
    ],
)
def test_impossible_recipes_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        augmentation.make(config(**options), num_classes=CLASSES, mesh=mesh())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"smoothing": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}, "none"),
        (
            {**EVERYTHING, "policy": "rand-m9-mstd0.5-inc1", "order": "mix_then_erase"},
            "random-resized crop of area 0.3 to 1 and ratio 0.75 to 1.33 (random, device), flip, rand-m9-mstd0.5-inc1, "
            "mixup 0.8 or CutMix 1 (50 % CutMix), erase 0.5, label smoothing 0.1",
        ),
        (
            {"pad": 4, "smoothing": 0.0, "cutmix": 1.0, "mix_prob": 0.5},
            "crop after padding by 4, CutMix 1 for 50 % of ",
        ),
    ],
)
def test_describe(options, line):
    assert augmentation.describe(config(**options)).startswith(line)
