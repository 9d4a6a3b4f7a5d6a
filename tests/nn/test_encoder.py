"""The encoder: the scan and its knobs, segments, and what LaPE is and is not, in float64 on a tiny model."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.nn.block_options import BlockOptions
from lape_jax.nn.encoder import REMAT_POLICIES, Block, Carry, Encoder, LayerInputs
from lape_jax.nn.join import JOINS
from tests import quick
from tests.quick import jit

PER_LAYER = ("unshared", "folded", "pvg", "mpvg")  # joinings that give each layer a table
DEPTH, BATCH, TOKENS, WIDTH, EPS = 3, 2, 5, 4, 1e-6
BLOCK = {
    "heads": 2,
    "mlp_hidden": 6,
    "pe_norm": "layernorm",
    "relative_grid": None,
    "dropout": 0.0,
    "attn_dropout": 0.0,
    "layer_scale": None,
    "ln_eps": EPS,
    "attention": "xla",
    "dtype": jnp.float64,
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def encoder(depth=DEPTH, drop_path=0.0, unroll=1, remat="none", **block):
    join = JOINS[block.pop("join", "lape")]
    return Encoder(depth, BlockOptions(**BLOCK, join=join).replace(**block), drop_path, unroll, remat)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def entering(join="lape"):
    """(the carry that enters block 0, the tables of all layers), as the joining wants them."""
    carry = Carry(draw(BATCH, TOKENS, WIDTH), None if join in ("default", *PER_LAYER) else draw(TOKENS, WIDTH))
    return carry, draw(DEPTH, TOKENS, WIDTH) if join in PER_LAYER else None


def random_params(model, join="lape"):
    """Parameters in which nothing is zero or one, of all of the encoder's layers."""
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), *entering(join))["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw(*leaf.shape, seed=len(str(path))) / 2 + (path[-1].key == "scale"), shapes
    )


@functools.cache
def run(join="lape", train=False, segments=((0, None),), depth=DEPTH, drop_path=0.0, unroll=1, remat="none", **block):
    """(tokens that leave, out, gradients by parameters, carry and tables) of the encoder, run in `segments`."""
    model = encoder(depth, drop_path, unroll, remat, join=join, **dict(block))
    cotangent = draw(BATCH, TOKENS, WIDTH, seed=1)
    carry, layer_pe = entering(join)
    layer_pe = None if layer_pe is None else layer_pe[:depth]

    def loss(params, carry, layer_pe):
        outs = []
        for first, count in segments:
            carry, out = model.apply(
                {"params": params},
                carry,
                layer_pe,
                train=train,
                first=first,
                count=count,
                rngs={"dropout": jax.random.key(1)},
            )
            outs.append(out)
        out = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)
        return jnp.sum(carry.tokens * cotangent), {"tokens": carry.tokens, "out": out}

    params = jax.tree.map(lambda leaf: leaf[:depth], random_params(encoder(join=join, **block), join))
    gradients, found = jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, carry, layer_pe)
    return jax.device_get(found | {"gradients": gradients})


def assert_same(ours, theirs, tolerance=1e-11):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    ours, theirs = jax.device_get((ours, theirs))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=str(path))


# ---- One result, whatever the knobs ----------------------------------------------------------------------------------

STOCHASTIC = {"train": True, "dropout": 0.3, "attn_dropout": 0.3, "drop_path": 0.5}
KNOBS = [
    {"remat": "attention"},
    {"unroll": DEPTH},
    {"unroll": "auto", "remat": "auto"},
    *({"remat": policy} for policy in REMAT_POLICIES if policy not in ("auto", "attention", "none")),
]


@pytest.mark.parametrize("knobs", quick.first(1, KNOBS), ids=str)
def test_knobs_change_neither_results_nor_gradients(knobs):
    """With all that is random switched on: the knobs do not change what is drawn, either."""
    assert_same(run(**STOCHASTIC, **knobs), run(**STOCHASTIC))


@pytest.mark.parametrize(
    "block", quick.first(0, [{"relative_grid": (2, 2), "layer_scale": 0.5}, {"norm2_on_residual": True}]), ids=str
)
def test_remat_of_attention_fits_every_block(block):
    assert_same(run(**block, remat="attention"), run(**block))


def products_and_kept(remat):
    """(matrix products in the gradient of one block, shapes of what the forward scan leaves behind of each block)."""
    model = encoder(remat=remat)

    def loss(params, carry):
        return jnp.sum(model.apply({"params": params}, carry, train=False)[0].tokens)

    def products(jaxpr):
        inner = [
            leaf for eqn in jaxpr.eqns for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns"))
        ]
        found = [products(leaf) for leaf in inner if hasattr(leaf, "eqns")]
        return sum(found) + sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)

    jaxpr = jax.make_jaxpr(jax.grad(loss))(random_params(model), entering()[0])
    forward = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    return products(jaxpr), {var.aval.shape[1:] for var in forward.outvars}


@pytest.mark.parametrize(
    ("remat", "products", "weights_kept"),
    [
        ("none", 18, True),  # qkv, q k^T, weights v, proj, fc1, fc2; twice as many in the backward pass
        ("dots", 18, True),
        ("attention", 20, False),  # and q k^T again, and in float32 or better weights v, which the sums divide
        ("dots_without_batch", 20, False),  # and both, for the gradient of proj, too
        ("full", 23, False),  # and qkv, proj and fc1
    ],
)
def test_what_remat_computes_again_and_what_it_keeps(remat, products, weights_kept):
    found, kept = products_and_kept(remat)
    assert found == products
    assert ((BATCH, BLOCK["heads"], TOKENS, TOKENS) in kept) == weights_kept


def test_the_stochastic_run_is_stochastic():
    differs = np.abs(run(**STOCHASTIC)["tokens"] - run()["tokens"])
    assert np.all(differs.max(axis=(1, 2)) > 1e-2)


def test_knobs_do_not_change_the_parameters():
    def params(model):
        return jax.device_get(jit(functools.partial(model.init, train=False))(jax.random.key(0), *entering()))

    plain = params(encoder())
    assert {leaf.shape[0] for leaf in jax.tree.leaves(plain)} == {DEPTH}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(plain)} == {"float32"}
    kernel = plain["params"]["blocks"]["attn"]["qkv"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-3  # each layer starts as itself
    jax.tree.map(np.testing.assert_array_equal, plain, params(encoder(unroll=DEPTH, remat="full")))


@pytest.mark.parametrize("join", quick.first(1, ["lape", "unshared"]))
def test_scan_equals_a_loop_over_blocks(join):
    params = random_params(encoder(join=join), join)["blocks"]

    @jit
    def loop(params, carry, layer_pe):
        out = []
        for index in range(DEPTH):
            block = Block(BlockOptions(**BLOCK, join=JOINS[join]), stochastic_depth=False, train=False)
            layer = LayerInputs(jnp.zeros(()), None if layer_pe is None else layer_pe[index], jnp.asarray(index))
            carry, found = block.apply({"params": jax.tree.map(operator.itemgetter(index), params)}, carry, layer)
            out.append(found)
        return carry.tokens, jax.tree.map(lambda *layers: jnp.stack(layers), *out)

    assert_same(loop(params, *entering(join)), (run(join)["tokens"], run(join)["out"]))


@pytest.mark.parametrize("join", quick.first(1, ["lape", "default", "unshared"]))
def test_segments_in_sequence_equal_one_run(join):
    assert_same(run(join, segments=((0, 1), (1, None))), run(join))


@pytest.mark.slow
def test_segments_have_the_same_knobs():
    assert_same(run(segments=((0, 1), (1, 2)), unroll=DEPTH, remat="full"), run())


def test_a_segment_creates_the_parameters_of_all_layers():
    def init(first, count):
        model = functools.partial(encoder().init, train=False, first=first, count=count)
        return jit(model)(jax.random.key(0), *entering())

    jax.tree.map(np.testing.assert_array_equal, init(1, 1), init(0, None))


@pytest.mark.parametrize(("first", "count", "last"), [(-1, None, 2), (0, 4, 3), (2, 2, 3), (1, 0, 0), (3, None, 2)])
def test_impossible_segments_are_user_errors(first, count, last):
    model = functools.partial(encoder().init, train=False, first=first, count=count)
    with pytest.raises(UserError, match=f"blocks {first} to {last} are not a segment of the 3 blocks there are"):
        jax.eval_shape(model, jax.random.key(0), *entering())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"unroll": 0}, "unroll=0 is neither 'auto' nor between 1 and depth=3"),
        ({"unroll": 4}, "unroll=4 is neither 'auto' nor between 1 and depth=3"),
        ({"remat": "ful"}, r"remat='ful' is not one of auto, none, full, dots, .* \(did you mean 'full'\?\)"),
    ],
)
def test_impossible_knobs_are_user_errors(knobs, message):
    with pytest.raises(UserError, match=message):
        encoder(**knobs).check()


# ---- What LaPE is, and is not ----------------------------------------------------------------------------------------


@functools.cache
def delivered(join, **block):
    """The PE that each layer delivers."""
    model = encoder(join=join, **block)

    @jit
    def pe(params, *entering):
        return model.apply({"params": params}, *entering, train=False)[1]["pe"]

    return np.asarray(pe(random_params(model, join), *entering(join)))


def layer_norm(z, scale, bias):
    z = np.asarray(z)
    z = z - z.mean(-1, keepdims=True)
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + EPS) * np.asarray(scale) + np.asarray(bias)


def pe_norms(join):
    """One function per layer: its LayerNorm of the PE."""
    params = random_params(encoder(join=join))["blocks"]["pe_norm"]
    return [functools.partial(layer_norm, scale=params["scale"][i], bias=params["bias"][i]) for i in range(DEPTH)]


def test_lape_is_a_chain_of_norms():
    first, second, third = pe_norms("lape")
    table = draw(TOKENS, WIDTH)
    expected = [first(table), second(first(table)), third(second(first(table)))]
    assert_same(delivered("lape"), np.asarray(expected))


def test_lape_sharing_normalises_the_same_table_in_each_layer():
    expected = [norm(draw(TOKENS, WIDTH)) for norm in pe_norms("lape_sharing")]
    assert_same(delivered("lape_sharing"), np.asarray(expected))


@pytest.mark.slow
def test_lape_sharing_is_lape_if_there_is_one_layer():
    assert_same(run("lape_sharing", depth=1), run("lape", depth=1))
    assert np.abs(delivered("lape_sharing")[1] - delivered("lape")[1]).max() > 1e-3


def test_identity_hands_the_table_on():
    np.testing.assert_array_equal(delivered("lape", pe_norm="identity"), [draw(TOKENS, WIDTH)] * DEPTH)


def test_shared_delivers_the_table_and_unshared_each_layer_its_own():
    np.testing.assert_array_equal(delivered("shared"), [draw(TOKENS, WIDTH)] * DEPTH)
    np.testing.assert_array_equal(delivered("unshared"), draw(DEPTH, TOKENS, WIDTH))


def test_the_pe_has_no_batch_axis():
    for join in set(JOINS) - {"default"}:
        assert delivered(join).shape == (DEPTH, TOKENS, WIDTH)


def test_query_key_and_value_see_the_pe_of_lape():
    """With LN1 at zero attention has nothing but the PE, so a weight has a gradient only if its matmul sees the PE."""
    params = random_params(encoder())
    params["blocks"]["norm1"] = jax.tree.map(np.zeros_like, params["blocks"]["norm1"])

    def loss(kernel):
        blocks = params["blocks"] | {"attn": params["blocks"]["attn"] | {"qkv": {**kernel}}}
        carry, _ = encoder().apply({"params": {"blocks": blocks}}, *entering(), train=False)
        return jnp.sum(carry.tokens * draw(BATCH, TOKENS, WIDTH, seed=2))

    gradient = jit(jax.grad(loss))(params["blocks"]["attn"]["qkv"])["kernel"]
    gradient = np.asarray(gradient).reshape(DEPTH, WIDTH, 3, WIDTH)
    assert np.all(np.abs(gradient).max(axis=(1, 3)) > 1e-4)


@pytest.mark.parametrize("join", sorted(JOINS))
def test_bfloat16_carries_the_pe_in_float32(join):
    model = encoder(join=join, dtype=jnp.bfloat16)
    (tokens, pe), layer_pe = jax.tree.map(lambda leaf: leaf.astype(np.float32), entering(join))
    carry = Carry(tokens.astype(jnp.bfloat16), pe)
    (carry, out), _ = jax.eval_shape(
        functools.partial(model.init_with_output, train=False), jax.random.key(0), carry, layer_pe
    )
    assert carry.tokens.dtype == out["tokens"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in (carry.pe, out["pe"]) if leaf is not None} <= {jnp.dtype("float32")}
    assert (out["pe"] is None) == (join == "default")


# ---- Stochastic depth and layer scale --------------------------------------------------------------------------------


@pytest.fixture
def constant_branches():
    """Parameters whose attention adds 1 and whose MLP adds 10, whatever enters."""
    params = jax.tree.map(np.zeros_like, random_params(encoder()))
    params["blocks"]["attn"]["proj"]["bias"] += 1
    params["blocks"]["mlp"]["fc2"]["bias"] += 10
    return params


def test_drop_path_by_hand(constant_branches):
    """Rates 0, 1/4 and 1/2 in the three blocks; each branch of each sample falls on its own."""
    samples = 400
    carry = Carry(np.zeros((samples, TOKENS, WIDTH)), draw(TOKENS, WIDTH))

    def tokens(train):
        apply = functools.partial(encoder(drop_path=0.5).apply, train=train)
        carry_out, out = jit(apply)({"params": constant_branches}, carry, rngs={"dropout": jax.random.key(0)})
        np.testing.assert_array_equal(carry_out.tokens, out["tokens"][-1])
        return np.asarray(out["tokens"])

    np.testing.assert_allclose(tokens(train=False), np.broadcast_to([[[[11]]], [[[22]]], [[[33]]]], (3, samples, 5, 4)))
    after = tokens(train=True)
    assert (after == after[:, :, :1, :1]).all()  # all of a sample or nothing of it
    after = after[:, :, 0, 0]
    np.testing.assert_allclose(after[0], 11)  # rate 0
    kept = []  # per block and sample: 1 if attention was, + 10 if the MLP was
    for before, now, keep in ((after[0], after[1], 3 / 4), (after[1], after[2], 1 / 2)):
        kept.append(np.round((now - before) * keep, 9))  # kept branches were divided by `keep`
        values, counts = np.unique(kept[-1], return_counts=True)
        np.testing.assert_array_equal(values, [0, 1, 10, 11])
        drop = 1 - keep
        np.testing.assert_allclose(counts / samples, [drop * drop, keep * drop, drop * keep, keep * keep], atol=0.08)
        assert (now - before).mean() == pytest.approx(11, rel=0.1)
    both = len(np.unique(kept[0] + 100 * kept[1]))
    assert both == 16  # blocks draw independently, too


def test_layer_scale_multiplies_both_branches(constant_branches):
    gamma = {"ls1": {"gamma": np.full((DEPTH, WIDTH), 2.0)}, "ls2": {"gamma": np.full((DEPTH, WIDTH), 3.0)}}
    model = encoder(layer_scale=1e-4)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), *entering())
    assert {name: jax.tree.map(jnp.shape, shapes["params"]["blocks"][name]) for name in gamma} == jax.tree.map(
        jnp.shape, gamma
    )
    params = {"params": {"blocks": constant_branches["blocks"] | gamma}}
    carry = Carry(np.zeros((BATCH, TOKENS, WIDTH)), draw(TOKENS, WIDTH))
    out = jit(functools.partial(model.apply, train=False))(params, carry)[1]
    np.testing.assert_allclose(out["tokens"][:, 0, 0, 0], [32, 64, 96])
