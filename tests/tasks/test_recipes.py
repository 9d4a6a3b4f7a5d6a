"""The recipes against the numbers that their authors published."""

import pytest
from flax.traverse_util import flatten_dict

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.tasks.classify import recipes
from lape_jax.tasks.config import validate
from lape_jax.tasks.detect import recipes as detection
from lape_jax.tasks.segment import recipes as scenes
from lape_jax.train import chrono, groups, optim
from tests import quick

CIFAR = 50_000


def multipliers(optimizer, model):
    return groups.multipliers(optimizer, model.param_shapes(), model.no_weight_decay)


def durations(config, steps_per_epoch):
    total = chrono.steps(config, "total", batch_size=config.batch_size, steps_per_epoch=steps_per_epoch)
    of = {"batch_size": config.batch_size, "steps_per_epoch": steps_per_epoch, "total_steps": total}
    return {name: chrono.steps(config, name, default=0, **of) for name in ("total", "warmup", "cooldown", "mix")}


def rates(config, steps_per_epoch, epochs):
    spans = durations(config, steps_per_epoch)
    rate = optim.schedule(
        config.optimizer,
        spans["total"],
        spans["warmup"],
        batch_size=config.batch_size,
        cooldown_steps=spans["cooldown"],
        steps_per_epoch=steps_per_epoch,
    )
    return [f"{rate(epoch * steps_per_epoch):.3e}" for epoch in epochs]


@pytest.mark.parametrize("model", ["deit_ti", "deit_s", "deit_b"])
def test_deit(model):
    config = recipes.deit("", model)
    validate(config)
    assert (config.model.name, config.model.join, config.model.drop_path) == (model, "lape", 0.1)
    assert durations(config, 1251) == {"total": 300 * 1251, "warmup": 5 * 1251, "cooldown": 0, "mix": 0}
    published = ["1.000e-06", "1.000e-06", "2.008e-04", "9.993e-04", "7.570e-04", "1.011e-05"]
    assert rates(config, 1251, (0, 1, 2, 6, 100, 299)) == published
    data, augment, optimizer = config.data, config.augment, config.optimizer
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (data.ratio, data.repeat_ranks, data.resident, data.pad) == ((3 / 4, 4 / 3), 4, False, 0)
    assert (data.image_size, data.scale, data.interpolation, data.repeats) == (224, (0.08, 1.0), "bicubic", 3)
    assert (augment.flip, augment.policy, augment.color_jitter) == (True, "rand-m9-mstd0.5-inc1", 0)
    assert (augment.erase_prob, augment.order) == (0.25, "erase_then_mix")
    assert (augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (optimizer.weight_decay, optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.05, 0.9, 0.999, 1e-8)
    assert (optimizer.clip_norm, optimizer.wd_mults) == (0, ())
    assert (config.loss.label_smoothing, config.dtype, config.batch_size) == (0.1, "bfloat16", 1024)


def test_the_two_ways_to_evaluate_deit():
    assert [recipes.deit(f"crop={crop}", "deit_ti").data.crop_ratio for crop in ("lape", "deit")] == [1.0, 0.875]
    with pytest.raises(UserError, match="did you mean 'deit'"):
        recipes.deit("crop=diet", "deit_ti")


@pytest.mark.parametrize("model", ["ceit_ti", "ceit_s"])
def test_ceit_is_trained_as_deit_and_evaluated_as_it_is_officially(model):
    config, deit = recipes.ceit("batch=512", model), recipes.deit("batch=512,crop=deit", model)
    assert config.to_json() == deit.to_json()
    validate(config)
    assert (config.data.crop_ratio, recipes.ceit("crop=lape", model).data.crop_ratio) == (0.875, 1.0)
    _, wd = multipliers(config.optimizer, models.create(model))
    assert (wd["pos_embed"], wd["cls_token"], wd["pos_layer_embed"]) == (0.0, 0.0, 1.0)
    norm, conv = wd["blocks"]["mlp"]["bn1"], wd["blocks"]["mlp"]["conv"]
    assert (norm["scale"], norm["bias"], conv["kernel"], conv["bias"]) == (0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(("model", "drop_path"), [("swin_t", 0.2), ("swin_s", 0.3)])
def test_swin(model, drop_path):
    config = recipes.swin("", model)
    validate(config)
    assert (config.model.name, config.model.pe, config.model.join) == (model, "learnable+relative", "lape")
    assert (config.model.drop_path, config.batch_size, config.dtype) == (drop_path, 1024, "bfloat16")
    assert durations(config, 1251) == {"total": 300 * 1251, "warmup": 20 * 1251, "cooldown": 0, "mix": 0}
    # 0 and 10 in the warm-up; the cosine takes 280 epochs: its start, middle, three quarters and end
    published = ["1.000e-06", "5.005e-04", "1.000e-03", "5.050e-04", "1.550e-04", "1.000e-05"]
    assert rates(config, 1251, (0, 10, 20, 160, 230, 300)) == published
    data, augment, optimizer = config.data, config.augment, config.optimizer
    assert (data.image_size, data.crop_ratio, data.interpolation, data.repeats) == (224, 0.875, "bicubic", 1)
    assert (augment.policy, augment.erase_prob, augment.order) == ("rand-m9-mstd0.5-inc1", 0.25, "erase_then_mix")
    assert (augment.mixup, augment.cutmix, config.loss.label_smoothing) == (0.8, 1.0, 0.1)
    assert (optimizer.weight_decay, optimizer.clip_norm, config.ema_decay) == (0.05, 5.0, 0)
    assert rates(recipes.swin("batch=512", model), 2502, (0, 20, 300)) == ["5.000e-07", "5.000e-04", "5.000e-06"]


@pytest.mark.parametrize("join", ["lape", "unshared"])
def test_no_table_of_swin_decays(join):
    config = recipes.swin("", "swin_t")
    _, decay = multipliers(config.optimizer, models.create("swin_t", join=join))
    decays = {"/".join(path[-2:]) for path, value in flatten_dict(decay).items() if value}
    assert decays == {f"{name}/kernel" for name in ("qkv", "proj", "fc1", "fc2", "reduction", "head")}


def test_distillation_is_for_the_distilled():
    config = recipes.deit("teacher=x.pth", "deit_s_distilled")
    assert (config.distill.teacher, config.distill.model, config.distill.alpha) == ("x.pth", "regnety_160", 0.5)
    with pytest.raises(UserError, match="take deit_s_distilled"):
        recipes.deit("teacher=x.pth", "deit_s")


@pytest.mark.parametrize(
    ("dataset", "mixing", "published"),
    [  # t = 0, 5 in the warm-up, 10, 150 (the middle of the cosine), 300 and 309 in the cool-down
        ("cifar10", 175, ["1.000e-05", "2.800e-04", "5.485e-04", "2.800e-04", "1.000e-05", "1.000e-05"]),
        ("cifar100", 0, ["1.000e-06", "3.005e-04", "5.984e-04", "3.050e-04", "1.000e-05", "1.000e-05"]),
    ],
)
def test_compact_transformers_on_cifar(dataset, mixing, published):
    config = recipes.compact_cifar("", "vit_lite_7_4", dataset)
    validate(config)
    steps = CIFAR // config.batch_size
    assert (steps, config.batch_size) == (390, 128)
    expected = {"total": 310 * 390, "warmup": 10 * 390, "cooldown": 10 * 390, "mix": mixing * 390}
    assert durations(config, steps) == expected
    assert rates(config, steps, (0, 5, 10, 150, 300, 309)) == published
    data, augment = config.data, config.augment
    assert (data.image_size, data.crop_ratio, data.resident, data.pad, data.repeats) == (32, 1.0, True, 0, 1)
    assert (data.scale, data.ratio, data.interpolation) == ((0.8, 1.0), (3 / 4, 4 / 3), "random")
    assert (data.mean, data.std) == {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }[dataset]
    assert (augment.flip, augment.color_jitter) == (True, 0)
    assert (augment.erase_prob, augment.order) == (0.25, "mix_then_erase")
    assert (augment.policy, augment.mixup, augment.cutmix) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0)
    assert (augment.mix_prob, augment.mix_switch_prob, config.loss.label_smoothing) == (1.0, 0.5, 0.1)
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm, config.ema_decay) == (0.06, 0, 0)


def test_a_shorter_cifar_run_keeps_its_proportions():
    config = recipes.compact_cifar("epochs=30,erase=0", "vit_lite_7_4", "cifar10")
    assert durations(config, 390) == {"total": 31 * 390, "warmup": 390, "cooldown": 390, "mix": 17.5 * 390}
    assert config.augment.erase_prob == 0


def test_only_cct_on_cifar10_goes_without_erasing():
    for model, dataset, erase in (
        ("cct_7_3x1", "cifar10", 0),
        ("cct_7_3x1", "cifar100", 0.25),
        ("cvt_7_4", "cifar10", 0.25),
    ):
        assert recipes.compact_cifar("", model, dataset).augment.erase_prob == erase
    assert recipes.compact_cifar("erase=0.1", "cct_7_3x1", "cifar10").augment.erase_prob == 0.1


def test_t2t_vit():
    config = recipes.t2t("", "t2t_vit_7")
    validate(config)
    assert (config.model.name, config.model.pe, config.model.drop_path) == ("t2t_vit_7", "sincos_1d", 0.1)
    assert (config.batch_size, config.ema_decay, config.dtype) == (512, 0.99996, "bfloat16")
    assert durations(config, 2502) == {"total": 310 * 2502, "warmup": 10 * 2502, "cooldown": 10 * 2502, "mix": 0}
    # t = 0, 5 in the warm-up, 10, 150 (the middle of the cosine), 300 and 309 in the cool-down
    published = ["1.000e-06", "5.005e-04", "9.973e-04", "5.050e-04", "1.000e-05", "1.000e-05"]
    assert rates(config, 2502, (0, 5, 10, 150, 300, 309)) == published
    data, augment, optimizer = config.data, config.augment, config.optimizer
    assert (data.image_size, data.crop_ratio, data.repeats) == (224, 0.9, 1)
    assert (data.scale, data.interpolation) == ((0.08, 1.0), "random")
    assert (augment.policy, augment.erase_prob, augment.order) == ("rand-m9-mstd0.5-inc1", 0.25, "mix_then_erase")
    assert (augment.mixup, augment.cutmix, config.loss.label_smoothing) == (0.8, 1.0, 0.1)
    assert (optimizer.lr, optimizer.lr_batch, optimizer.weight_decay, optimizer.clip_norm) == (1e-3, 0, 0.03, 0)
    assert recipes.t2t("", "t2t_vit_14").optimizer.weight_decay == 0.05
    _, wd = multipliers(optimizer, models.create("t2t_vit_7", pe="learnable", depth=1))
    assert (wd["cls_token"], wd["pos_embed"], wd["blocks"]["pe_norm"]["scale"]) == (0.0, 1.0, 0.0)
    tokens = wd["patch_embed"]["attention1"]
    assert (tokens["kqv"]["kernel"], tokens["kqv"]["bias"], tokens["norm1"]["scale"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("size", "lr", "drop_path"), quick.first(1, [("ti", 1.2e-4, 0.1), ("s", 6e-5, 0.2)]))
def test_upernet(size, lr, drop_path):
    config = scenes.upernet("path=DIR,init=FILE", f"upernet_vit_adapter_{size}")
    validate(config)
    assert durations(config, 1263) == {"total": 160_000, "warmup": 1500, "cooldown": 0, "mix": 0}
    # of lr 1.2e-4; the rate that falls is warmed up
    published = {0: 1.2e-10, 750: 5.97188e-5, 1499: 1.187965e-4, 1500: 1.18875e-4, 159_999: 7.5e-10}
    rate = optim.schedule(config.optimizer, 160_000, 1500, batch_size=config.batch_size)
    assert {step: float(rate(step)) for step in published} == pytest.approx(
        {step: value * lr / 1.2e-4 for step, value in published.items()}, rel=1e-4
    )
    model = models.create(**config.model)
    assert (model.drop_path, model.head_dropout, model.channels, model.variant) == (drop_path, 0.1, 512, "segmentation")
    data, segment, optimizer = config.data, config.segment, config.optimizer
    assert (config.batch_size, config.dtype, config.init.weights) == (16, "bfloat16", "FILE")
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (data.image_size, segment.scale, segment.scale_range) == (512, (2048, 512), (0.5, 2.0))
    assert (segment.max_class, segment.distort, config.augment.flip, segment.mean_over) == (0.75, True, True, "all")
    assert (segment.stride, segment.multiple, segment.scales, segment.flip) == (341, 32, (1.0,), False)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.clip_norm) == ("adamw", lr, 0.01, 0)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    lr_mults, wd = multipliers(optimizer, model)
    assert lr_mults["pos_embed"] == pytest.approx(0.95**13)
    assert lr_mults["blocks"]["mlp"]["fc1"]["kernel"] == pytest.approx([0.95 ** (12 - i) for i in range(12)])
    assert (lr_mults["level_embed"], lr_mults["decode_head"]["conv_seg"]["kernel"]) == (1.0, 1.0)
    assert (wd["pos_embed"], wd["level_embed"], wd["blocks"]["pe_norm"]["scale"]) == (1.0, 1.0, 0.0)


def test_a_shorter_run_of_upernet_keeps_its_proportions():
    config = scenes.upernet("path=DIR,steps=16000,batch=8", "upernet_vit_adapter_ti")
    assert durations(config, 2526) == {"total": 16_000, "warmup": 150, "cooldown": 0, "mix": 0}
    assert (config.batch_size, config.optimizer.lr) == (8, 1.2e-4)


def test_the_position_table_decays_on_cifar_and_not_in_deit():
    model = models.create("vit_lite_7_4", num_classes=10)
    for config, decays in (
        (recipes.compact_cifar("", "vit_lite_7_4", "cifar10"), 1.0),
        (recipes.deit("", "deit_ti"), 0.0),
    ):
        _, wd = multipliers(config.optimizer, model)
        assert (wd["pos_embed"], wd["cls_token"]) == (decays, decays)
        assert (wd["blocks"]["pe_norm"]["scale"], wd["norm"]["bias"], wd["head"]["kernel"]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("model", "drop_path"), [("mask_rcnn_vit_adapter_ti", 0.1), ("mask_rcnn_vit_adapter_s", 0.2)])
def test_mask_rcnn(model, drop_path):
    config = detection.mask_rcnn("path=DIR", model)
    validate(config)
    assert (config.task, config.model.name, config.model.join) == ("detect", model, "lape")
    assert models.create(model).drop_path == drop_path
    assert durations(config, 7330) == {"total": 36 * 7330, "warmup": 500, "cooldown": 0, "mix": 0}
    # e = 0, 1, 26 | 27, 32 | 33, 35: x 0.1 from each bar on
    published = ["1.000e-07", "1.000e-04", "1.000e-04", "1.000e-05", "1.000e-05", "1.000e-06", "1.000e-06"]
    assert rates(config, 7330, (0, 1, 26, 27, 32, 33, 35)) == published
    once = detection.mask_rcnn("path=DIR,schedule=1x", model)
    assert rates(once, 7330, (7, 8, 10, 11)) == ["1.000e-04", "1.000e-05", "1.000e-05", "1.000e-06"]
    detect, optimizer = config.detect, config.optimizer
    assert (detect.canvas, detect.long, detect.crop, detect.crop_short) == (
        (1024, 1024),
        1333,
        (384, 600),
        (400, 500, 600),
    )
    assert (len(detect.short), detect.short[0], detect.short[-1]) == (11, 480, 800)
    assert (detect.test_long, detect.test_short, config.augment.flip) == (1333, 800, True)
    assert (optimizer.name, optimizer.weight_decay, optimizer.clip_norm) == ("adamw", 0.05, 0)
    assert (config.batch_size, config.dtype, config.data.orientation) == (16, "float32", "view")
    assert (config.data.train_split, config.data.val_split) == ("train2017", "val2017")
    with pytest.raises(UserError, match="did you mean '3x'"):
        detection.mask_rcnn("schedule=2x", model)
