"""What multiplies learning rate and weight decay: rules, layer-wise decay, and the step that comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.train import groups, optim
from tests import quick
from tests.train.small import NO_WEIGHT_DECAY, config, random_tree, shapes


def test_default_decay_follows_the_official_rule():
    _, wd = groups.multipliers(config(), shapes(), NO_WEIGHT_DECAY)
    assert wd == {
        "patch_embed": {"proj": {"kernel": 1.0, "bias": 0.0}},
        "cls_token": 0.0,
        "dist_token": 1.0,
        "pos_embed": 0.0,
        "blocks": {
            "norm1": {"scale": 0.0, "bias": 0.0},
            "pe_norm": {"scale": 0.0},
            "attn": {"qkv": {"kernel": 1.0, "bias": 0.0}, "relative_position_bias_table": 1.0},
            "ls1": {"gamma": 0.0},
        },
        "norm": {"scale": 0.0, "bias": 0.0},
        "head": {"kernel": 1.0, "bias": 0.0},
    }


def declared(name, **settings):
    """The weight decay of a model's parameters, and all it has."""
    model = models.create(name, depth=2, **settings)
    return groups.multipliers(config(), model.param_shapes(), model.no_weight_decay)[1]


def test_positional_encoding_generators_do_not_decay():
    assert not any(jax.tree.leaves(declared("deit_ti", pe="learnable+peg", peg_blocks=2)["peg_1"]))


def test_frequencies_of_rope_do_not_decay():
    wd = declared("deit_ti", pe="rope_mixed")
    assert wd["blocks"]["attn"]["freqs"] == 0
    assert wd["blocks"]["attn"]["qkv"]["kernel"] == 1


def test_of_big_visions_parameters_the_kernels_decay():
    mults = rules.flat_names(declared("vit_ti_16", pool="map")) | rules.flat_names(declared("vit_ti_16", pool="tok"))
    assert {"cls", "pos_embedding"} < set(mults)
    assert {name for name, mult in mults.items() if mult} == {name for name in mults if name.endswith("/kernel")}


def test_unshared_position_tables_decay():
    wd = declared("deit_ti", join="unshared")
    assert (wd["pos_embed"], wd["cls_token"]) == (1.0, 0.0)


def test_first_matching_rule_wins_on_whole_names():
    lr, wd = groups.multipliers(
        config(lr_mults=(("head/.*", 10), ("head/bias", 7.0), (".*", 1)), wd_mults=(("norm", 5.0), (".*", 2.0))),
        shapes(),
        NO_WEIGHT_DECAY,
    )
    assert lr["head"] == {"kernel": 10.0, "bias": 10.0}
    assert wd["norm"] == {"scale": 2.0, "bias": 2.0}  # "norm" is not the whole of "norm/scale"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("blocks/.*", 1.0)], "optimizer.lr_mults: no rule matches the parameter 'cls_token'"),
        ([(".*", -1.0)], "-1.0 is not a number >= 0"),
        ([(".*", "1")], "'1' is not a number >= 0"),
    ],
)
def test_bad_rules_are_user_errors(rules, message):
    with pytest.raises(UserError, match=message):
        optim.make(config(lr_mults=rules), shapes(), float, NO_WEIGHT_DECAY)


def test_describe_counts_each_group():
    lines = optim.describe(config(lr_mults=(("head/.*", 0.0), (".*", 0.5))), shapes(), NO_WEIGHT_DECAY, batch_size=1024)
    assert lines == [
        "adamw, learning rate 0.01, changes every step",
        "lr x 0.5, weight decay x 1: 4 tensors, 218 parameters",
        "lr x 0.5, weight decay x 0: 10 tensors, 115 parameters",
        "frozen: 2 tensors, 25 parameters",
    ]


# ---- Layer-wise decay ------------------------------------------------------------------------------------------------

# id 0, blocks 0 to 2, and what lies behind them; d = 1/2 has exact powers.
FIRST, LAYERS, LAST = 1 / 16, (1 / 8, 1 / 4, 1 / 2), 1.0


def by_hand(name, layer):
    """The factor of a layer of a parameter of `small.PARAMS`."""
    return {"blocks": LAYERS[layer or 0], "norm": LAST, "head": LAST}.get(name.split("/")[0], FIRST)


def test_layer_decay_by_hand():
    lr, _ = groups.multipliers(config(layer_decay=0.5), shapes(), NO_WEIGHT_DECAY)
    for name, mult in rules.flat_names(lr).items():
        expected = LAYERS if name.startswith("blocks/") else by_hand(name, None)
        np.testing.assert_array_equal(mult, expected)
    assert optim.make(config(layer_decay=1.0), shapes(), float, NO_WEIGHT_DECAY)  # off


def test_layer_decay_and_rules_multiply():
    mults = (("head/.*", 3), ("blocks/norm1/.*", (0, 1, 4)), ("blocks/.*", 2), ("pos_embed", 0), (".*", 1))
    lr, _ = groups.multipliers(config(layer_decay=0.5, lr_mults=mults), shapes(), NO_WEIGHT_DECAY)
    assert lr["head"] == {"kernel": 3.0, "bias": 3.0}
    np.testing.assert_array_equal(lr["blocks"]["norm1"]["scale"], [0, 1 / 4, 2])
    np.testing.assert_array_equal(lr["blocks"]["attn"]["qkv"]["bias"], [1 / 4, 1 / 2, 1])
    assert (lr["pos_embed"], lr["cls_token"]) == (0.0, FIRST)


def test_a_frozen_stack_is_frozen():
    lr, _ = groups.multipliers(
        config(layer_decay=0.5, lr_mults=(("blocks/.*", 0), (".*", 1))), shapes(), NO_WEIGHT_DECAY
    )
    assert set(jax.tree.leaves(lr["blocks"])) == {0.0}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            ("head/kernel", (1, 1, 1, 1)),
            r"'head/kernel' is not stacked by layers: its multiplier is one number, not \(1,",
        ),
        (("pos_embed", (1, 1)), "'pos_embed' is not stacked by layers"),
        (("blocks/norm1/scale", (1, 1)), "2 multipliers for the 3 layers of 'blocks/norm1/scale': give one for each"),
        (("blocks/norm1/scale", (1, 1, -1)), "the multiplier -1 is not a number >= 0"),
        (("blocks/norm1/scale", (1, 1, (1,))), r"the multiplier \(1,\) is not a number >= 0"),
    ],
)
def test_bad_vectors_are_user_errors(rule, message):
    with pytest.raises(UserError, match=f"optimizer.wd_mults: {message}"):
        groups.multipliers(config(wd_mults=(rule, (".*", 1.0))), shapes(), NO_WEIGHT_DECAY)


def test_layer_decay_needs_blocks():
    with pytest.raises(UserError, match=r"layer_decay is 0\.9, but the model has no stacked blocks for it to act on"):
        groups.multipliers(config(layer_decay=0.9), shapes({"stem": (3,), "head": (3,)}), NO_WEIGHT_DECAY)


def test_describe_shows_layers():
    frozen = (("head/.*|blocks/ls1/.*", 0.0), ("blocks/pe_norm/.*", (0, 1, 1)), (".*", 1.0))
    lines = optim.describe(config(layer_decay=0.5, lr_mults=frozen), shapes(), NO_WEIGHT_DECAY, batch_size=8)
    assert lines == [
        "adamw, learning rate 0.01, changes every step, layer decay 0.5",
        "lr x 1, weight decay x 0: 2 tensors, 8 parameters",
        "lr x 0.125 to 0.5 by layer, weight decay x 1: 2 tensors, 198 parameters",
        "lr x 0.125 to 0.5 by layer, weight decay x 0: 3 tensors, 60 parameters",
        "lr x 0 to 0.5 by layer, weight decay x 0: 1 tensors, 3 parameters",
        "lr x 0.0625, weight decay x 1: 2 tensors, 20 parameters",
        "lr x 0.0625, weight decay x 0: 3 tensors, 32 parameters",
        "frozen: 3 tensors, 37 parameters",
    ]


# ---- The step: each layer as a parameter of its own, as it is in PyTorch ---------------------------------------------

UPDATES = 4
OPTIMISERS = ({"name": "adamw"}, {"name": "sgd"}, {"name": "sgd", "nesterov": True})
DECAYED = {"layer_decay": 0.5, "clip_norm": 2.0, "wd_mults": ((r".*/(bias|scale|gamma)", 0.0), (r".*", 1.0))}


def separate(tree):
    """{(name, layer or None): array}, with a copy of each layer."""
    named = rules.flat_names(tree).items()
    return {
        (name, layer): np.array(leaf if layer is None else leaf[layer])
        for name, leaf in named
        for layer in (range(3) if name.startswith("blocks/") else (None,))
    }


def learn(cfg):
    """The parameters after some updates by our optimiser, and the gradients of each."""
    gradients = [random_tree(step + 1) for step in range(UPDATES)]
    params = jax.tree.map(jnp.asarray, random_tree(0))
    tx = optim.make(cfg, params, lambda step: cfg.lr, NO_WEIGHT_DECAY)
    state, update = tx.init(params), quick.jit(tx.update)
    for gradient in gradients:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    return separate(params), [clipped(separate(gradient), cfg.clip_norm) for gradient in gradients]


def clipped(gradient, most):
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    return {key: g * min(1, most / norm) for key, g in gradient.items()}


def settings(cfg, key):
    """(learning rate, weight decay) of a parameter's group."""
    name, layer = key
    return cfg.lr * by_hand(name, layer), cfg.weight_decay * (not name.endswith(("bias", "scale", "gamma")))


@pytest.mark.parametrize("kind", quick.first(1, OPTIMISERS))
def test_a_layer_moves_as_a_parameter_of_its_own(kind):
    cfg = config(**kind, **DECAYED)
    with jax.enable_x64():
        ours, gradients = learn(cfg)
    for key, p in separate(random_tree(0)).items():
        lr, decay = settings(cfg, key)
        m, v = np.zeros_like(p), np.zeros_like(p)
        for t, g in enumerate((gradient[key] for gradient in gradients), 1):
            if cfg.name == "sgd":
                g = g + decay * p
                m = cfg.momentum * m + g
                p = p - lr * (g + cfg.momentum * m if cfg.nesterov else m)
            else:
                p = p * (1 - lr * decay)
                m, v = cfg.beta1 * m + (1 - cfg.beta1) * g, cfg.beta2 * v + (1 - cfg.beta2) * g * g
                p = p - lr / (1 - cfg.beta1**t) * m / (np.sqrt(v / (1 - cfg.beta2**t)) + cfg.eps)
        np.testing.assert_allclose(ours[key], p, rtol=1e-12, atol=1e-14, err_msg=str(key))


@pytest.mark.peer
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_layer_moves_as_in_torch(kind):
    torch = pytest.importorskip("torch")
    cfg = config(**kind, **DECAYED)
    with jax.enable_x64():
        ours, gradients = learn(cfg)
    theirs = {key: torch.nn.Parameter(torch.tensor(p)) for key, p in separate(random_tree(0)).items()}
    sets = [dict(zip(("lr", "weight_decay"), settings(cfg, key), strict=True), params=[p]) for key, p in theirs.items()]
    if cfg.name == "sgd":
        peer = torch.optim.SGD(sets, lr=1.0, momentum=cfg.momentum, nesterov=cfg.nesterov)
    else:
        peer = torch.optim.AdamW(sets, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
    for gradient in gradients:
        for key, p in theirs.items():
            p.grad = torch.tensor(gradient[key])
        peer.step()
    for key, p in theirs.items():
        np.testing.assert_allclose(ours[key], p.detach().numpy(), rtol=1e-12, atol=1e-14, err_msg=str(key))


def test_a_frozen_layer_stays_and_does_not_count_in_the_norm():
    params = {"blocks": {"norm1": {"scale": jnp.ones((2, 3))}}}
    cfg = config(name="sgd", lr_mults=(("blocks/.*", (0, 1)),), wd_mults=((".*", 0.0),), clip_norm=1.0)
    tx = optim.make(cfg, params, lambda step: 1.0, NO_WEIGHT_DECAY)
    gradient = jnp.array([[jnp.nan, jnp.inf, 5.0], [3.0, 0.0, 4.0]])
    updates, _ = quick.jit(tx.update)({"blocks": {"norm1": {"scale": gradient}}}, tx.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["norm1"]["scale"], [[0, 0, 0], [-0.6, 0, -0.8]], rtol=1e-6)


def test_weight_decay_by_layer():
    params = {"blocks": {"mlp": {"kernel": jnp.full((3, 2, 2), 2.0)}}}
    cfg = config(wd_mults=((".*", (0, 1, 2)),))
    tx = optim.make(cfg, params, lambda step: 1.0, NO_WEIGHT_DECAY)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    expected = -0.3 * 2 * np.array([0, 1, 2])[:, None, None] * np.ones((3, 2, 2))
    np.testing.assert_allclose(updates["blocks"]["mlp"]["kernel"], expected, rtol=1e-6, atol=0)


def test_a_run_goes_on_with_another_layer_decay():
    states = [
        optim.make(config(layer_decay=d), shapes(), float, NO_WEIGHT_DECAY).init(random_tree(0)) for d in (1.0, 0.5)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_scanned_and_unrolled_blocks_have_the_same_multipliers():
    settings = {"layer_decay": 0.9}
    found = [
        groups.multipliers(
            config(**settings), models.create("vit_micro", unroll=unroll).param_shapes(), NO_WEIGHT_DECAY
        )
        for unroll in (1, 6)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)
