"""The optimisers against hand-computed schedules, a NumPy re-implementation, and torch.optim (marker `peer`)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lape_jax.errors import UserError
from lape_jax.train import groups, optim
from tests.train.small import NO_WEIGHT_DECAY, config, random_tree, shapes


def test_schedule_is_timms_by_hand():
    rate = optim.schedule(config(lr=1e-3, warmup_lr=1e-6, min_lr=1e-5), total_steps=12, warmup_steps=3)
    expected = {
        0: 1e-6,
        1: 1e-6 + 999e-6 / 3,
        2: 1e-6 + 2 * 999e-6 / 3,
        3: 1e-5 + 99e-5 * (1 + math.sqrt(0.5)) / 2,  # cos(pi/4): counted from step 0
        4: 1e-5 + 99e-5 * 0.75,  # cos(pi/3)
        6: 1e-5 + 99e-5 * 0.5,  # cos(pi/2)
        8: 1e-5 + 99e-5 * 0.25,
        12: 1e-5,
        13: 1e-5,  # the cosine would rise again
        1000: 1e-5,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=2e-7, atol=2e-10, err_msg=str(step))
    np.testing.assert_allclose(jax.jit(rate)(jnp.arange(14)), [rate(t) for t in range(14)], rtol=1e-6)


def test_a_prefixed_warmup_by_hand():
    rate = optim.schedule(config(schedule="step_prefix", lr=1e-3, warmup_lr=1e-6, min_lr=1e-5), 15, 3)
    cosine = {3: 1, 5: (1 + math.sqrt(0.75)) / 2, 7: 0.75, 9: 0.5, 11: 0.25, 15: 0, 16: 0}  # twelve steps, from step 3
    expected = {0: 1e-6, 2: 1e-6 + 2 * 999e-6 / 3} | {t: 1e-5 + 99e-5 * part for t, part in cosine.items()}
    np.testing.assert_allclose([rate(t) for t in expected], list(expected.values()), rtol=2e-7, atol=2e-10)
    assert optim.schedule(config(schedule="step_prefix", min_lr=1e-5), 4, 4)(4) == np.float32(1e-5)


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [("step", (0, 1, 5, 99, 298)), ("epoch", (0, 1, 5, 99, 298)), ("epoch_lag", (1, 2, 6, 100, 299))],
)
def test_schedule_gives_deits_published_rates(kind, epochs):
    # DeiT: 300 epochs of 1251 steps with 5 of warm-up, lr 1e-3 at batch 1024.
    cfg = config(schedule=kind, lr=1e-3, warmup_lr=1e-6, min_lr=1e-5)
    rate = optim.schedule(cfg, total_steps=300 * 1251, warmup_steps=5 * 1251, steps_per_epoch=1251)
    published = ["1.000e-06", "2.008e-04", "9.993e-04", "7.570e-04", "1.011e-05"]
    assert [f"{rate(epoch * 1251):.3e}" for epoch in epochs] == published
    last = [rate(epoch * 1251 + 1250) for epoch in epochs]
    assert ([f"{value:.3e}" for value in last] == published) == (kind != "step")  # constant within an epoch
    if kind == "epoch_lag":
        assert rate(0) == rate(1250) == rate(1251)  # epochs 0 and 1 both have the first rate


def test_segmenters_polynomial_by_hand():
    lr = optim.schedule(config(schedule="poly", lr=1e-3, min_lr=1e-4), 160_000, 0)
    for step, expected in ((0, 1e-3), (40_000, 1e-4 + 9e-4 * 0.75**0.9), (120_000, 1e-4 + 9e-4 * 0.25**0.9)):
        np.testing.assert_allclose(lr(step), expected, rtol=1e-6)
    assert lr(160_000) == np.float32(1e-4)
    assert optim.describe(config(name="sgd", schedule="poly", lr=1e-3), shapes(), NO_WEIGHT_DECAY, 8)[0] == (
        "sgd, learning rate 0.001, falls with power 0.9"
    )


def test_upernets_schedule_warms_up_the_falling_rate():
    # ViT-Adapter's UperNet: 160,000 iterations, 1,500 of warm-up from 1e-6 of the rate, power 1 to 0.
    cfg = config(schedule="poly_warm", power=1.0, lr=1.2e-4, warmup_lr=1.2e-10, min_lr=0.0)
    rate = optim.schedule(cfg, 160_000, 1500)
    official = {0: 1.2e-10, 750: 5.97188e-5, 1499: 1.187965e-4, 1500: 1.18875e-4, 159_999: 7.5e-10}
    for step, value in official.items():
        np.testing.assert_allclose(rate(step), value, rtol=5e-7, err_msg=str(step))
    steps = np.array([0, 1, 2, 749, 1499, 1500, 80_000, 159_000, 159_990, 159_999, 160_000])
    falling = 1.2e-4 * (1 - steps / 160_000)
    exact = np.where(steps < 1500, falling * (1 - (1 - steps / 1500) * (1 - 1e-6)), falling)
    np.testing.assert_allclose(jax.jit(rate)(jnp.asarray(steps)), exact, rtol=3e-7)
    assert rate(160_000) == 0
    assert optim.describe(cfg, shapes(), NO_WEIGHT_DECAY, 16)[0] == (
        "adamw, learning rate 0.00012, falls with power 1, also under its warm-up"
    )


def test_a_warm_up_that_multiplies_keeps_the_least_rate_and_follows_the_batch():
    cfg = config(schedule="poly_warm", power=2.0, lr=0.5, lr_batch=8, warmup_lr=0.25, min_lr=0.5)
    rate = optim.schedule(cfg, 10, 4, batch_size=16)  # lr 1
    falling = [0.5 + 0.5 * (1 - t / 10) ** 2 for t in range(11)]
    expected = [r * (0.25 + 0.75 * t / 4) if t < 4 else r for t, r in enumerate(falling)]
    np.testing.assert_allclose([rate(t) for t in range(11)], expected, rtol=1e-6)
    assert optim.schedule(cfg, 10, 0, batch_size=16)(0) == 1


@pytest.mark.parametrize(
    ("epochs", "milestones", "falls"),
    [
        (36, (27 / 36, 33 / 36), (27, 33)),
        (12, (8 / 12, 11 / 12), (8, 11)),
        (12, (27 / 36, 33 / 36), (9, 11)),
        (24, (16 / 24, 22 / 24), (16, 22)),
    ],
)
@pytest.mark.parametrize("steps", [7330, 3665, 7, 1])
def test_steps_fall_at_the_beginning_of_an_epoch(epochs, milestones, falls, steps):
    cfg = config(schedule="multistep", milestones=milestones, lr=1e-4, warmup_lr=1e-7, min_lr=0.0)
    rate = optim.schedule(cfg, epochs * steps, 0, steps_per_epoch=steps)
    first, last = np.arange(epochs) * steps, np.arange(1, epochs + 1) * steps - 1
    expected = np.select([np.arange(epochs) < falls[0], np.arange(epochs) < falls[1]], [1e-4, 1e-5], 1e-6)
    for ends in (first, last):
        np.testing.assert_array_equal(rate(ends), expected.astype(np.float32))


def test_mask_rcnns_schedule():
    # 36 epochs of 7,330 iterations; 500 of warm-up from 0.001 of the rate.
    cfg = config(schedule="multistep", milestones=(27 / 36, 33 / 36), lr=1e-4, warmup_lr=1e-7, min_lr=0.0)
    rate = optim.schedule(cfg, 36 * 7330, 500, steps_per_epoch=7330)
    for step in (0, 1, 250, 499):
        np.testing.assert_allclose(rate(step), 1e-4 * (1 - (1 - step / 500) * (1 - 0.001)), rtol=3e-7)
    assert (rate(0), rate(500)) == (pytest.approx(1e-7, rel=1e-6), np.float32(1e-4))
    assert optim.describe(cfg, shapes(), NO_WEIGHT_DECAY, 16)[0] == (
        "adamw, learning rate 0.0001, x 0.1 after 75 % and 91.67 % of the run"
    )


def test_steps_do_not_fall_below_min_lr_and_end_before_a_cooldown():
    cfg = config(schedule="multistep", milestones=(0.5, 0.8), lr=1.0, warmup_lr=0.5, min_lr=0.03125)
    rate = optim.schedule(cfg, 12, 6, cooldown_steps=2)
    warm = [0.5 + 0.5 * t / 6 for t in range(5)] + [
        0.1 * (0.5 + 0.5 * 5 / 6)
    ]  # the first fall comes within the warm-up
    expected = [*warm, 0.1, 0.1, *4 * [0.03125]]
    np.testing.assert_allclose([rate(t) for t in range(12)], expected, rtol=1e-6)


def test_cooldown_follows_the_whole_cosine():
    # Compact Transformers: 10 epochs at min_lr after 300; here 2 after 4, of 3 steps each.
    cfg = config(schedule="epoch", lr=1.0, warmup_lr=0.1, min_lr=0.25)
    rate = optim.schedule(cfg, total_steps=18, warmup_steps=3, cooldown_steps=6, steps_per_epoch=3)
    half = math.sqrt(0.5)
    per_epoch = [0.1, 0.25 + 0.375 * (1 + half), 0.25 + 0.375, 0.25 + 0.375 * (1 - half), 0.25, 0.25]
    np.testing.assert_allclose([rate(step) for step in range(18)], np.repeat(per_epoch, 3), rtol=1e-6)
    with pytest.raises(UserError, match=r"not 0: 6 in all .* less 6 of cool-down"):
        optim.schedule(cfg, total_steps=6, warmup_steps=0, cooldown_steps=6)


def test_schedule_without_warmup_starts_at_the_peak():
    rate = optim.schedule(config(lr=0.5, min_lr=0.0), total_steps=4, warmup_steps=0)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(
        [rate(t) for t in range(5)], [0.5, 0.25 * (1 + half), 0.25, 0.25 * (1 - half), 0.0], atol=1e-7
    )


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (10, 11), (10, -1)])
def test_impossible_schedules_are_user_errors(total, warmup):
    with pytest.raises(UserError, match="step"):
        optim.schedule(config(), total, warmup)


def test_the_peak_follows_the_batch_and_is_printed():
    cfg = config(lr=5e-4, lr_batch=512, schedule="epoch_lag", min_lr=0.0)
    assert optim.describe(cfg, shapes(), NO_WEIGHT_DECAY, 1024)[0] == (
        "adamw, learning rate 0.001 = 0.0005 x batch 1024 / 512, changes every epoch, one late"
    )
    assert optim.schedule(cfg, 10, 0, batch_size=256)(0) == np.float32(2.5e-4)
    with pytest.raises(UserError, match=r"min_lr 0\.001 is above the peak of the learning rate, 0\.0005"):
        optim.schedule(config(lr=1e-3, lr_batch=512, min_lr=1e-3), 10, 0, batch_size=256)


def reference_run(cfg, wd_mults, lr_mults, steps, total, warmup):
    """AdamW or SGD after the formulas, in float64 NumPy, on flat lists."""
    params = [np.array(p) for p in jax.tree.leaves(random_tree(0))]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    wd_mults, lr_mults = jax.tree.leaves(wd_mults), jax.tree.leaves(lr_mults)
    for t in range(steps):
        grads = [g * (m != 0) for g, m in zip(jax.tree.leaves(random_tree(t + 1)), lr_mults, strict=True)]
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        if cfg.clip_norm and norm > cfg.clip_norm:
            grads = [g * (cfg.clip_norm / norm) for g in grads]
        if t < warmup:
            lr = cfg.warmup_lr + t * (cfg.lr - cfg.warmup_lr) / warmup
        else:
            cosine, polynomial = (1 + math.cos(math.pi * t / total)) / 2, (1 - t / total) ** cfg.power
            lr = cfg.min_lr + (cfg.lr - cfg.min_lr) * (polynomial if cfg.schedule == "poly" else cosine)
        for i, g in enumerate(grads):
            if cfg.name == "sgd":
                g = g + cfg.weight_decay * wd_mults[i] * params[i]
                first[i] = cfg.momentum * first[i] + g
                step = g + cfg.momentum * first[i] if cfg.nesterov else first[i]
                params[i] = params[i] - lr * lr_mults[i] * step
                continue
            first[i] = cfg.beta1 * first[i] + (1 - cfg.beta1) * g
            second[i] = cfg.beta2 * second[i] + (1 - cfg.beta2) * g**2
            mean, var = first[i] / (1 - cfg.beta1 ** (t + 1)), second[i] / (1 - cfg.beta2 ** (t + 1))
            step = mean / (np.sqrt(var) + cfg.eps) + cfg.weight_decay * wd_mults[i] * params[i]
            params[i] = params[i] - lr * lr_mults[i] * step
    return params


def our_run(cfg, steps, total, warmup):
    params = jax.tree.map(jnp.asarray, random_tree(0))
    tx = optim.make(cfg, params, optim.schedule(cfg, total, warmup), NO_WEIGHT_DECAY)
    state = tx.init(params)

    @jax.jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(steps):
        params, state = update(params, state, jax.tree.map(jnp.asarray, random_tree(t + 1)))
    return params


OPTIMISERS = (
    {"name": "adamw"},
    {"name": "sgd", "schedule": "poly"},
    {"name": "sgd", "schedule": "poly", "nesterov": True, "power": 2.0},
)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_ten_updates_agree_with_numpy(kind):
    cfg = config(**kind, clip_norm=2.0, lr_mults=(("head/.*", 3.0), ("blocks/.*/qkv/.*", 0.0), (".*", 1.0)))
    with jax.enable_x64():
        ours = our_run(cfg, 10, total=20, warmup=3)
        lr, wd = groups.multipliers(cfg, shapes(), NO_WEIGHT_DECAY)
        for a, b in zip(jax.tree.leaves(ours), reference_run(cfg, wd, lr, 10, total=20, warmup=3), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.peer
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_ten_updates_agree_with_torch(kind):
    torch = pytest.importorskip("torch")
    cfg = config(**kind, clip_norm=1.0)
    with jax.enable_x64():
        ours = jax.tree.leaves(our_run(cfg, 10, total=20, warmup=3))
        rate = optim.schedule(cfg, 20, 3)
        rates = [float(rate(t)) for t in range(10)]
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in jax.tree.leaves(random_tree(0))]
    _, wd = groups.multipliers(cfg, shapes(), NO_WEIGHT_DECAY)
    decayed = [t for t, mult in zip(tensors, jax.tree.leaves(wd), strict=True) if mult]
    others = [t for t, mult in zip(tensors, jax.tree.leaves(wd), strict=True) if not mult]
    sets = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if cfg.name == "sgd":
        peer = torch.optim.SGD(sets, lr=1.0, momentum=cfg.momentum, nesterov=cfg.nesterov)
    else:
        peer = torch.optim.AdamW(sets, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
    for t in range(10):
        grads = [torch.tensor(g) for g in jax.tree.leaves(random_tree(t + 1))]
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        for tensor, grad in zip(tensors, grads, strict=True):
            # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6; we (and optax) by the norm
            tensor.grad = grad * torch.clamp(cfg.clip_norm / norm, max=1.0)
        for group in peer.param_groups:
            group["lr"] = rates[t]
        peer.step()
    for a, b in zip(ours, tensors, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_frozen_parameters_stay_even_where_gradients_are_not_finite():
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    tx = optim.make(
        config(lr_mults=(("a", 0), (".*", 1.0)), clip_norm=1.0),
        params,
        optim.schedule(config(), 10, 0),
        NO_WEIGHT_DECAY,
    )
    updates, _ = jax.jit(tx.update)({"a": jnp.full(3, jnp.nan), "b": jnp.ones(3)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"], 0.0)
    assert np.all(np.isfinite(updates["b"]))
    assert np.all(updates["b"] < 0)


def test_weight_decay_without_parameters_is_refused():
    params = {"a": jnp.ones(3)}
    tx = optim.make(config(), params, optim.schedule(config(), 10, 0), NO_WEIGHT_DECAY)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))


def test_the_state_does_not_depend_on_the_options():
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    states = [
        optim.make(config(**options), params, float, NO_WEIGHT_DECAY).init(params)
        for options in ({}, {"clip_norm": 1.0, "lr_mults": (("a", 0.0), (".*", 2.0)), "wd_mults": ((".*", 1.0),)})
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
