"""Warm starts from backbones: without a head, with what pre-training has beside one, for other patches and colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from lape_jax.port.resize import recolour_kernel, resize_kernel, resize_table
from lape_jax.port.transfer import transfer as port_transfer
from tests import quick
from tests.port.test_checkpoint import FAMILIES, prefixed
from tests.port.tiny import random_variables, tiny

KERNEL = "patch_embed/proj/kernel"
HEAD = ("head/bias", "head/kernel")
PE_NORMS = ("blocks/pe_norm/bias", "blocks/pe_norm/scale")


@pytest.fixture(scope="module")
def model():
    return tiny(join="lape")


@pytest.fixture(scope="module")
def source():
    return tiny(join="default", num_classes=7)


@pytest.fixture(scope="module")
def backbone(source):
    """A state dict without head."""
    state_dict = port.to_torch(random_variables(source), source)
    return {name: array for name, array in state_dict.items() if not name.startswith("head")}


def started(path, model, arrays, **options):
    np.savez(path, **arrays)
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())
    variables, moved = port.warm_start(path, model, initial, **options)
    return flatten(variables), moved


def check_loaded(ours, moved, theirs):
    theirs = flatten(theirs)
    assert set(moved.loaded) == set(theirs) - set(HEAD)
    for path in moved.loaded:
        np.testing.assert_array_equal(ours[path], theirs[path])


@pytest.mark.parametrize("format", ["torch", "lape"])
def test_without_a_head(tmp_path, model, source, backbone, format):
    variables = random_variables(source)
    if format == "lape":
        backbone = {path: array for path, array in flatten(variables).items() if path not in HEAD}
    ours, moved = started(tmp_path / "w.npz", model, backbone)
    check_loaded(ours, moved, variables)
    assert moved.initialised == (*PE_NORMS, *HEAD)
    assert moved.notes == moved.dropped == moved.resized == ()
    assert np.all(ours["head/kernel"] == 0.5)
    with pytest.raises(UserError, match=r"it lacks head.bias, head.weight|it lacks head/bias, head/kernel"):
        port.load(tmp_path / "w.npz", source)


@pytest.mark.parametrize("name", quick.first(1, FAMILIES))
def test_families_without_a_head(tmp_path, name):
    source = models.create(name, **FAMILIES[name], num_classes=3, join="default")
    arrays = port.to_torch(random_variables(source), source)
    tops = ("head.", "classifier.fc.", "encoder.head.", "decoder.")
    headless = {key: array for key, array in arrays.items() if not key.startswith(tops)}
    model = models.create(name, **FAMILIES[name], num_classes=5)
    _, moved = started(tmp_path / "w.npz", model, prefixed("module.", headless))
    assert moved.dropped == moved.resized == ()
    assert len(moved.notes) == 1
    assert "module." in moved.notes[0]
    lacking = {path.split("/")[0] for path in moved.initialised if "pe_norm" not in path}
    assert lacking == {"decoder" if "segmenter" in name else "head"}


EXTRAS = {
    "mae": ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight"],
    "dino": ["head.mlp.0.weight", "head.last_layer.weight_v"],
    "dinov2": ["mask_token", "dino_head.mlp.0.weight", "ibot_head.last_layer.weight_g"],
    "moco": ["predictor.0.weight", "projector.1.running_mean", "queue"],
    "ssl": ["projection_head.0.bias", "prototypes.weight", "fc.weight"],
    "timm": ["fc_norm.weight", "attn_pool.latent"],
}


@pytest.mark.parametrize(("name", "prefix"), [*zip(EXTRAS, ["", "module."] * 3, strict=True)])
def test_what_pre_training_has_beside_it_is_left_out(tmp_path, model, source, backbone, name, prefix):
    extras = {extra: np.ones((1, 4)) for extra in EXTRAS[name]}
    ours, moved = started(tmp_path / "w.npz", model, prefixed(prefix, backbone | extras))
    check_loaded(ours, moved, random_variables(source))
    assert moved.lines()[bool(prefix)].startswith("left out, as no parts of the model: ")
    for extra in EXTRAS[name]:
        assert f"{extra.split('.')[0]} (" in moved.lines()[bool(prefix)]


def test_what_is_not_behind_the_prefix_is_left_out(tmp_path, model, source, backbone):
    """As the teacher of DINO, and a model with a neck."""
    arrays = prefixed("backbone.", backbone) | {"neck.0.weight": np.ones((2, 2)), "neck.0.bias": np.ones(2)}
    ours, moved = started(tmp_path / "w.npz", model, arrays)
    check_loaded(ours, moved, random_variables(source))
    assert moved.notes == ("'backbone.' taken off the names", "left out, as no parts of the model: neck (2)")


def test_student_and_teacher(tmp_path, model, source, backbone):
    arrays = prefixed("student.backbone.", backbone) | prefixed("teacher.backbone.", backbone)
    arrays |= {"student.head.mlp.0.weight": np.ones((2, 2)), "teacher.head.mlp.0.weight": np.ones((2, 2))}
    with pytest.raises(UserError, match=r"under 'student.backbone' and under 'teacher.backbone'"):
        started(tmp_path / "w.npz", model, arrays)
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())
    for key in ("teacher", "teacher.backbone"):
        variables, moved = port.warm_start(f"{tmp_path / 'w.npz'}:{key}", model, initial)
        check_loaded(flatten(variables), moved, random_variables(source))


@pytest.mark.parametrize(
    "name",
    ["reg_token", "norm_pre.weight", "blocks.0.ls1.gamma", "blocks.1.attn.q_norm.weight", "blocks.2.norm1.bias", "ema"],
)
def test_what_changes_a_backbone_is_not_left_out(tmp_path, model, backbone, name):
    with pytest.raises(UserError, match=rf"w.npz: .* the model has no {name}$"):
        started(tmp_path / "w.npz", model, backbone | {name: np.ones((1, 32))})


@pytest.mark.parametrize("name", ["blocks.1.norm2.bias", "patch_embed.proj.bias", "cls_token"])
def test_what_a_backbone_must_have(tmp_path, model, backbone, name):
    with pytest.raises(UserError, match=rf"w.npz: .* it lacks {name}$"):
        started(tmp_path / "w.npz", model, {key: array for key, array in backbone.items() if key != name})


@pytest.mark.slow
def test_a_deeper_decoder_is_not_cut(tmp_path):
    """A Segmenter's own decoder is a part of it, whatever else is called so."""
    sizes = {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "num_classes": 3}
    source = models.create("segmenter_ti_mask", **sizes, decoder_depth=3)
    with pytest.raises(UserError, match=r"the model has no decoder\.blocks\.2"):
        started(
            tmp_path / "w.npz",
            models.create("segmenter_ti_mask", **sizes),
            port.to_torch(random_variables(source), source),
        )


def test_a_segmenter_from_a_backbone_and_a_vit_from_a_segmenter(tmp_path):
    sizes = {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "num_classes": 3}
    segmenter, vit = models.create("segmenter_ti_mask", **sizes), models.create("deit_ti", **sizes)
    weights = port.to_torch(random_variables(vit), vit)
    headless = {name: array for name, array in weights.items() if "head" not in name}
    ours, moved = started(tmp_path / "w.npz", segmenter, prefixed("teacher.backbone.", headless))
    assert {"cls_token", "blocks/attn/qkv/kernel", KERNEL} < set(moved.loaded)
    assert all(path.startswith("decoder/") for path in moved.initialised)
    ours, moved = started(tmp_path / "w.npz", vit, port.to_torch(random_variables(segmenter), segmenter))
    assert {"cls_token", "blocks/attn/qkv/kernel", KERNEL} < set(moved.loaded)
    np.testing.assert_array_equal(ours[KERNEL], flatten(random_variables(segmenter))[KERNEL])
    assert moved.notes[0] == "'encoder.' taken off the names"
    assert moved.notes[1].startswith("left out, as no parts of the model: decoder (")


def test_big_visions_without_a_head(tmp_path):
    sizes = {"width": 32, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 8, "num_classes": 5}
    model = models.create("vit_ti_16", **sizes, join="default")
    flat = port.to_big_vision(random_variables(model), model)
    arrays = {f"params/img/{name}": array for name, array in flat.items() if not name.startswith("head")}
    arrays |= {"params/img/MAPHead_0/probe": np.ones((1, 1, 32)), "params/t": np.ones(1)}
    _, moved = started(tmp_path / "w.npz", model, arrays)
    assert moved.initialised == HEAD
    assert moved.notes == ("left out, as no parts of the model: MAPHead_0 (1)",)
    with pytest.raises(UserError, match="it lacks head/bias, head/kernel"):
        port.load(tmp_path / "w.npz", model)


# ---- Other patches and colours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", quick.first(1, [tiny, lambda **kw: models.create("vit_ti_16", **{**BIG_VISION, **kw})])
)
@pytest.mark.parametrize(("of", "to"), quick.first(1, [(3, 1), (1, 3)]))
def test_grey_and_rgb_have_the_same_output(tmp_path, make, of, to):
    source, model = make(join="default", in_channels=of), make(join="default", in_channels=to)
    weights = random_variables(source)
    port.save(tmp_path / "w.npz", weights, source, format="lape")
    initial = jax.tree.map(np.zeros_like, random_variables(model))
    variables, moved = port.warm_start(tmp_path / "w.npz", model, initial)
    said = "summed over RGB, for grey images" if to == 1 else "spread evenly over RGB, from grey"
    assert len(moved.notes) == 1
    assert moved.notes[0].endswith(f"/kernel: {said}") or moved.notes[0] == f"embedding/kernel: {said}"
    assert len(moved.resized) == 1
    grey = np.random.default_rng(1).standard_normal((2, 16, 16, 1)).astype(np.float32)
    (expected, _), (found, _) = (
        quick.jit(owner.apply)(params, jnp.asarray(np.repeat(grey, channels, axis=-1)))
        for owner, params, channels in ((source, weights, of), (model, variables, to))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


BIG_VISION = {"width": 32, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 8, "num_classes": 5}


def test_other_channels_are_refused(tmp_path):
    source = tiny(in_channels=4)
    port.save(tmp_path / "w.npz", random_variables(source), source)
    initial = random_variables(tiny())
    with pytest.raises(
        UserError, match=r"w.npz: the weights are for images of 4 channels and the model for 3: only gr"
    ):
        port.warm_start(tmp_path / "w.npz", tiny(), initial)


@pytest.mark.parametrize(
    ("format", "patch", "size"),
    quick.first(1, [("torch", (4, 8), (16, 32)), ("torch", 4, 16), ("lape", 16, 32), ("lape", 6, 18)]),
)
def test_other_patches(tmp_path, format, patch, size):
    """Of weights for 8 x 8 patches in 2 x 2 of them; also in grey, and from a run."""
    source, model = tiny(join="default"), tiny(join="lape", patch_size=patch, image_size=size, in_channels=1)
    weights = random_variables(source)
    port.save(tmp_path / "w.npz", weights, source, format=format)
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())
    variables, moved = port.warm_start(tmp_path / "w.npz", model, initial)
    ours, theirs = flatten(variables), flatten(weights)
    rows, columns = patch if isinstance(patch, tuple) else (patch, patch)
    assert moved.notes == (
        f"{KERNEL}: resized from 8 x 8 to {rows} x {columns} pixels (PI-resize, as in FlexiViT)",
        f"{KERNEL}: summed over RGB, for grey images",
    )
    assert moved.lines()[:2] == list(moved.notes)
    np.testing.assert_array_equal(ours[KERNEL], recolour_kernel(resize_kernel(theirs[KERNEL], (rows, columns)), 1))
    np.testing.assert_array_equal(ours["pos_embed"], resize_table(theirs["pos_embed"], (2, 2), model.grid, 1))
    of_run, again = port_transfer(weights, source, initial, model)
    assert again == moved
    np.testing.assert_array_equal(flatten(of_run)[KERNEL], ours[KERNEL])


@pytest.mark.slow
def test_patches_of_another_size_of_images(tmp_path):
    """The table tells how many patches there were: 4 x 4 of 4 x 4 pixels."""
    source, model = tiny(join="default", patch_size=4), tiny(join="lape", image_size=24)
    port.save(tmp_path / "w.npz", random_variables(source), source)
    _, moved = port.warm_start(tmp_path / "w.npz", model, random_variables(model))
    assert moved.resized == (KERNEL, "pos_embed")


@pytest.mark.slow
def test_convolutions_are_no_patches(tmp_path):
    """Of a CCT the kernel may change its colours, but not its size."""
    sizes = {"width": 16, "depth": 1, "heads": 2, "image_size": 16}
    source = models.create("cct_7_3x1", **sizes)
    port.save(tmp_path / "w.npz", random_variables(source), source)
    model = models.create("cct_7_3x1", **sizes, in_channels=1)
    _, moved = port.warm_start(tmp_path / "w.npz", model, random_variables(model))
    assert moved.notes == ("patch_embed/conv0/kernel: summed over RGB, for grey images",)
    model = models.create("cct_7_3x1", **sizes, kernel_size=5)
    with pytest.raises(UserError, match=r"shapes differ|another kind or size of model"):
        port.warm_start(tmp_path / "w.npz", model, random_variables(model))
