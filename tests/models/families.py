"""What the parity tests of the other families share: the answer of a model of ours, and the comparison with goldens."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax import models, port
from lape_jax.port import params
from tests.models import stepwise
from tests.models.compare import assert_close
from tests.reference import cases, families
from tests.reference.ceit_cases import CeitCase
from tests.reference.compact_cases import CompactCase
from tests.reference.mask_rcnn_cases import DetectorCase
from tests.reference.segmenter_cases import SegmenterCase
from tests.reference.swin_cases import SwinCase
from tests.reference.t2t_cases import T2TCase
from tests.reference.vit_adapter_cases import HEADS, AdapterCase

TOLERANCE = 1e-9  # relative to the largest entry (goldens: to the norm) of the reference's tensor
NOTHING = 1e-4  # gradients below are zero but for rounding, such as that of a bias before a softmax


def compact(case: CompactCase, dtype="float64"):
    """The model of ours that a case describes."""
    sizes = {"image_size": case.image, "width": case.width, "depth": case.depth, "heads": case.heads}
    joining = {"pe": case.pe, "join": case.join, "pe_norm": case.pe_norm}
    if case.convs:
        name, tokens = "cct_7_3x1", {"conv_layers": case.convs, "kernel_size": case.kernel}
    else:
        name, tokens = f"{case.family}_7_4", {"patch_size": case.patch}
    return models.create(name, num_classes=case.classes, dtype=dtype, **sizes, **joining, **tokens)


def t2t(case: T2TCase, dtype="float64"):
    """The model of ours that a case describes."""
    sizes = {"image_size": case.image, "width": case.width, "depth": case.depth, "heads": case.heads}
    joining = {"pe": case.pe, "join": case.join, "pe_norm": case.pe_norm}
    tokens = {"token_attention": case.tokens, "token_dim": case.token_dim}
    return models.create("t2t_vit_7", num_classes=case.classes, dtype=dtype, **sizes, **joining, **tokens)


def swin(case: SwinCase, dtype="float64"):
    """The model of ours that a case describes."""
    sizes = {"image_size": case.image, "patch_size": case.patch, "width": case.width, "mlp_ratio": case.mlp_ratio}
    stages = {"depths": case.depths, "heads": case.stage_heads, "window_size": case.window}
    joining = {"pe": case.pe, "join": case.join, "pe_norm": case.pe_norm}
    return models.create("swin_t", num_classes=case.classes, dtype=dtype, **sizes, **stages, **joining)


def ceit(case: CeitCase, dtype="float64"):
    """The model of ours that a case describes."""
    sizes = {"image_size": case.image, "patch_size": case.patch, "in_channels": case.channels, "width": case.width}
    sizes |= {"depth": case.depth, "heads": case.heads, "mlp_ratio": case.mlp_ratio, "stem_width": case.stem_width}
    joining = {"pe": case.pe, "join": case.join, "pe_norm": case.pe_norm}
    scale = 1e-4 if case.layer_scale else None
    return models.create("ceit_ti", num_classes=case.classes, dtype=dtype, layer_scale=scale, **sizes, **joining)


def segmenter(case: SegmenterCase, dtype="float64"):
    """The model of ours that a case describes."""
    sizes = {"image_size": case.image, "patch_size": case.patch, "width": case.width, "depth": case.depth}
    sizes |= {"heads": case.heads, "mlp_ratio": case.mlp_ratio, "distilled": case.distilled, "ln_eps": case.ln_eps}
    joining = {"pe": case.pe, "join": case.join, "pe_norm": case.pe_norm}
    options = {"num_classes": case.classes, "pe_resize": case.resize, "upsample": case.upsample}
    return models.create(f"segmenter_ti_{case.decoder}", dtype=dtype, **sizes, **joining, **options)


def adapter(case: AdapterCase, dtype="float64", **settings):
    """The model of ours that a case describes."""
    sizes, table = case.sizes, tuple(16 * side for side in case.sizes.table_grid)
    options = {"width": sizes.width, "depth": sizes.depth, "heads": HEADS, "mlp_ratio": sizes.mlp_ratio}
    options |= {"deform_heads": sizes.deform_heads, "deform_points": sizes.points, "spatial_width": sizes.prior_width}
    options |= {"join": sizes.join, "variant": case.variant, "drop_path": 0.0, "dtype": dtype}
    options |= {"pe": "+".join(filter(None, ("learnable", case.rope)))}
    if not case.upernet:
        return models.create("vit_adapter_ti", **{**options, "image_size": table, **settings})
    options |= {"num_classes": sizes.classes, "channels": sizes.head_width, "aux_channels": sizes.aux_width}
    options |= {"head_dropout": 0.0, "table_size": table, "image_size": case.at}
    return models.create("upernet_vit_adapter_ti", **{**options, **settings})


def adapter_outputs(case: AdapterCase, found) -> dict[str, jax.Array]:
    """What a call of the case's model gives, by the names that the reference has for it."""
    if case.upernet:
        return {"pixels": found[0], "masks": found[1]["masks"], "aux": found[1]["aux"]}
    return {f"map{i}": map_ for i, map_ in enumerate(found[0], start=1)}


def mask_rcnn(case: DetectorCase, dtype="float64", **settings):
    """The model of ours that a case describes."""
    sizes = case.shapes.backbone
    options = {"width": sizes.width, "depth": sizes.depth, "heads": HEADS, "mlp_ratio": sizes.mlp_ratio}
    options |= {"deform_heads": sizes.deform_heads, "deform_points": sizes.points, "spatial_width": sizes.prior_width}
    options |= {"image_size": tuple(16 * side for side in sizes.table_grid), "join": sizes.join, "drop_path": 0.0}
    options |= {"channels": case.shapes.channels, "hidden": case.shapes.hidden, "num_classes": case.shapes.classes}
    options |= {name: getattr(case, name) for name in ("pre_nms_train", "pre_nms_test", "proposals", "detections")}
    return models.create("mask_rcnn_vit_adapter_ti", dtype=dtype, **{**options, **settings})


def weights(model, table) -> dict[str, np.ndarray]:
    """Random ones for the entries of the model's state dict, which the module `table` of `lape_jax.port` names."""
    return families.weights({entry.names[0]: entry.shape for entry in table.entries(params.shapes(model))})


def answer(
    model, case: cases.Case, weights: dict[str, np.ndarray], outputs=lambda out: {}, run=stepwise.run
) -> dict[str, np.ndarray]:
    """Logits in float64, and as `grad NAME` the gradients of sum(logits * cotangent): see `golden/make_*.py`.

    Also what `outputs` takes from the model's `out`, by name. `run(f, x)` is f(x) by some way of computing it. Call it
    with `jax.enable_x64(True)`.
    """
    variables = port.from_torch(weights, model)
    images, cotangent = cases.images(case), cases.cotangent(case)
    constants = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        logits, out = model.apply({"params": params, **constants}, jnp.asarray(images), train=False)
        return jnp.sum(logits * cotangent), (logits, outputs(out))

    gradients, (logits, others) = run(jax.grad(loss, has_aux=True), variables["params"])
    assert logits.dtype == jnp.float64
    found = {"params": jax.tree.map(np.asarray, gradients), **constants}
    by_name = {name: value for name, value in port.to_torch(found, model).items() if name in weights}
    frozen = [name for name in weights if name.endswith(".w")]  # random features
    learned = {f"grad {name}": x for name, x in by_name.items() if name not in frozen}
    return {"logits": np.asarray(logits), **jax.tree.map(np.asarray, others), **learned}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Every tensor of the reference, one by one."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(name, ours[name], value, TOLERANCE, scale=max(np.abs(value).max(), NOTHING))


def assert_golden(ours: dict[str, np.ndarray], stored: np.ndarray) -> None:
    """What `tests.reference.cases.golden` keeps of the reference's answer."""
    found, logits = cases.golden(ours), ours["logits"].size
    assert stored.shape == found.shape
    assert_close("logits", found[:logits], stored[:logits], TOLERANCE)
    names = [name for name in sorted(ours) if name != "logits"]
    for name, row, expected in zip(names, found[logits:].reshape(-1, 4), stored[logits:].reshape(-1, 4), strict=True):
        assert_close(f"sketch of {name}", row, expected, TOLERANCE, scale=max(expected[0], NOTHING))


def goldens(name: str) -> dict[str, np.ndarray]:
    """By case, from golden/NAME.npz."""
    with np.load(pathlib.Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return dict(file)
