"""The yardstick of ViT-Adapter itself, against values worked out by hand and PyTorch's own layers."""

import hashlib
import math

import numpy as np
import pytest

from tests.reference.cases import Case, uniform
from tests.reference.vit_adapter_states import (
    Sizes,
    learned,
    random_state,
    tiny,
    upernet_shapes,
    vit_adapter_shapes,
)

torch = pytest.importorskip("torch")
from tests.reference import torch_deformable, torch_vit, torch_vit_adapter  # noqa: E402  (they need torch)
from tests.reference.torch_vit_adapter import Mode, tensors  # noqa: E402

pytestmark = pytest.mark.peer

GRID = (4, 6)
DEFORMABLE = {"heads": 2, "points": 3}
OPTIONS = {"depth": 8, "heads": 2, "attend": torch_deformable.Deformable(**DEFORMABLE)}


def backbone(join: str = "default", grad: bool = False) -> dict:
    return tensors(random_state(vit_adapter_shapes(tiny(join)), GRID, deform_heads=2), requires_grad=grad)


def draw(name: str, *shape: int):
    return torch.from_numpy(uniform(name, shape))


def images(batch: int = 2):
    return draw("images", batch, 3, 16 * GRID[0], 16 * GRID[1])


def maximum(tensor) -> float:
    return float(tensor.detach().abs().max())


# ---- names, shapes, values


@pytest.mark.parametrize(
    ("width", "join", "bare", "whole"),
    [
        (192, "default", 7_966_640, 36_062_428),
        (192, "lape", 7_966_640 + 4_608, 36_062_428 + 4_608),
        (384, "default", 27_503_888, 57_614_908),
        (384, "lape", 27_503_888 + 9_216, 57_614_908 + 9_216),
    ],
)
def test_parameter_counts_are_the_official_ones(width, join, bare, whole):
    sizes = Sizes(width=width, join=join)
    assert sum(map(math.prod, learned(vit_adapter_shapes(sizes)).values())) == bare
    assert sum(map(math.prod, learned(upernet_shapes(sizes)).values())) == whole


def test_names_and_shapes_are_those_of_the_official_state_dicts():
    # SHA-256 of the official models' lists of tensors, "name shape" a line, in their order.
    whole = upernet_shapes(Sizes())
    assert (len(whole), len(learned(whole))) == (492, 423)
    assert sum(name.endswith("running_mean") for name in whole) == 23
    expected = {
        "977d42eea9932620ca35cb3d90aa5b02f10b798f5e1bb3bdf2eb7b23e609b799": vit_adapter_shapes(Sizes()),
        "e4cbf8e495736500783fcbe3108adf11d7457a7287dfbe762085b6e1f0c8db1a": whole,
    }
    for digest, shapes in expected.items():
        lines = "".join(f"{name} {shape}\n" for name, shape in shapes.items())
        assert hashlib.sha256(lines.encode()).hexdigest() == digest


def test_random_states_are_float64_and_nowhere_trivial():
    shapes = upernet_shapes(tiny("lape"))
    state = random_state(shapes, GRID, deform_heads=2)
    assert {name: value.shape for name, value in state.items()} == shapes
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert value.dtype == np.float64, name
            assert np.unique(value).size == value.size, name
            assert np.abs(value).min() > 0, name
        if name.endswith("running_var"):
            assert value.min() > 0.4
    other = random_state(shapes, GRID, seed=1, deform_heads=2)
    assert not np.array_equal(other["backbone.pos_embed"], state["backbone.pos_embed"])


def test_about_37_percent_of_the_sampling_points_lie_outside():
    shares = []

    def counted(value, shapes, locations, weights):
        shares.append(float(((locations < 0) | (locations > 1)).any(dim=-1).double().mean()))
        return torch_deformable.sample_by_taps(value, shapes, locations, weights)

    attend = torch_deformable.Deformable(**DEFORMABLE, sample=counted)
    torch_vit_adapter.vit_adapter(backbone(), images(), variant="detection", **OPTIONS | {"attend": attend})
    assert len(shares) == 4 * 2 + 2
    assert 0.33 < np.mean(shares) < 0.41


# ---- batch normalisation, windows, position embedding


def test_batch_norm_uses_the_batch_in_training_and_the_running_statistics_otherwise():
    # Channel values 1, 2, 3, 6: mean 3, biased variance 14/4, unbiased 14/3; momentum .1.
    x = torch.tensor([[1.0, 2], [3, 6]], dtype=torch.float64).reshape(2, 1, 1, 2)
    values = {"weight": 2.0, "bias": 0.5, "running_mean": -1.0, "running_var": 4.0}
    state = {f"n.{name}": torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
    state["n.num_batches_tracked"] = torch.tensor(7)
    mode = Mode(train=True)
    found = torch_vit_adapter.batch_norm(state, "n", x, mode).flatten()
    np.testing.assert_allclose(found, [2 * (v - 3) / math.sqrt(3.5 + 1e-5) + 0.5 for v in (1, 2, 3, 6)], rtol=1e-14)
    assert float(mode.statistics["n.running_mean"]) == pytest.approx(0.9 * -1 + 0.1 * 3, rel=1e-14)
    assert float(mode.statistics["n.running_var"]) == pytest.approx(0.9 * 4 + 0.1 * 14 / 3, rel=1e-14)
    assert int(mode.statistics["n.num_batches_tracked"]) == 8
    found = torch_vit_adapter.batch_norm(state, "n", x, Mode()).flatten()
    np.testing.assert_allclose(found, [2 * (v + 1) / math.sqrt(4 + 1e-5) + 0.5 for v in (1, 2, 3, 6)], rtol=1e-14)


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_is_that_of_pytorch(train):
    layer = torch.nn.BatchNorm2d(4).double().train(train)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    state = tensors(random_state(shapes, GRID))
    layer.load_state_dict(state)
    mode, x = Mode(train), draw("x", 3, 4, 2, 5)
    found = torch_vit_adapter.batch_norm({f"n.{name}": value for name, value in state.items()}, "n", x, mode)
    assert maximum(found - layer(x)) < 1e-13
    for name, value in mode.statistics.items():
        assert maximum(value - layer.state_dict()[name.removeprefix("n.")]) < 1e-14
    assert len(mode.statistics) == (3 if train else 0)


def test_windows_of_the_whole_grid_are_global_attention():
    state, x = backbone(), draw("x", 2, 12, 16)
    whole, windowed = (torch_vit_adapter.attention(state, "blocks.0.attn", x, 2, (3, 4), w) for w in (None, 4))
    assert maximum(whole - windowed) > 1e-3  # the windows have one row of padding
    x = draw("x", 2, 16, 16)
    whole, windowed = (torch_vit_adapter.attention(state, "blocks.0.attn", x, 2, (4, 4), w) for w in (None, 4))
    assert maximum(whole - windowed) < 1e-14


def test_padding_takes_its_share_of_the_softmax():
    # A 1 x 3 grid in windows of 2: the last token stands alone beside three padded ones, of logit 0 and value 0.
    state = {"a.qkv.weight": torch.zeros(3, 1), "a.qkv.bias": torch.tensor([1.0, 2.0, 3.0])}
    state |= {"a.proj.weight": torch.ones(1, 1), "a.proj.bias": torch.zeros(1)}
    state = {name: value.double() for name, value in state.items()}
    x = torch.zeros(1, 3, 1, dtype=torch.float64)
    found = torch_vit_adapter.attention(state, "a", x, 1, (1, 3), 2).flatten()
    e = math.exp(2)  # a token's logit with itself or its like is 1 * 2
    np.testing.assert_allclose(found, [3 * 2 * e / (2 * e + 2)] * 2 + [3 * e / (e + 3)], rtol=1e-14)


def test_blocks_are_those_of_the_vit_with_layer_scale():
    state = backbone("lape")
    theirs = torch_vit.Block(Case(join="lape", width=16, heads=2, mlp_ratio=2.0, layer_scale=True)).double()
    mine = {name.removeprefix("blocks.3."): value for name, value in state.items() if name.startswith("blocks.3.")}
    theirs.load_state_dict({name.replace("gamma", "gamma_"): value for name, value in mine.items()}, strict=True)
    x, w = draw("x", 2, 12, 16), draw("w", 12, 16)
    p = torch_vit_adapter.layer_norm(state, "blocks.3.pe_norm", w, 1e-6)
    found = torch_vit_adapter.block(state, "blocks.3", x, p, 2, (3, 4), None, 1e-6)
    assert maximum(found - theirs(x, theirs.pe_norm(w))) < 1e-14


def test_blocks_with_windows_by_default():
    assert torch_vit_adapter.default_windows(12, "segmentation", 14) == [None] * 12
    assert torch_vit_adapter.default_windows(12, "detection", 14) == [14, 14, None] * 4


def test_position_embedding_is_resized_without_its_class_row():
    state = {"pos_embed": draw("pe", 1, 10, 4)}
    same = torch_vit_adapter.position_embedding(state, None, (3, 3))
    assert maximum(same - state["pos_embed"][:, 1:]) < 1e-14
    # A cubic through a constant is that constant, and an oblong table is read row by row.
    state["pos_embed"] = torch.full((1, 9, 4), 2.5, dtype=torch.float64)
    found = torch_vit_adapter.position_embedding(state, (2, 4), (5, 3))
    assert found.shape == (1, 15, 4)
    assert maximum(found - 2.5) < 1e-14


@pytest.mark.parametrize("join", ["default", "lape"])
def test_the_class_row_never_matters(join):
    state = backbone(join)
    before = torch_vit_adapter.vit_adapter(state, images(1), variant="detection", join=join, **OPTIONS)
    state["pos_embed"][:, 0] += 3
    after = torch_vit_adapter.vit_adapter(state, images(1), variant="detection", join=join, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    state["pos_embed"][:, 1:] = state["pos_embed"][:, 1:].flip(1)
    other = torch_vit_adapter.vit_adapter(state, images(1), variant="detection", join=join, **OPTIONS)
    assert maximum(other[0] - after[0]) > 1e-3


def test_lape_reaches_nothing_but_the_attention():
    state = backbone("lape")
    for layer in range(8):
        state[f"blocks.{layer}.attn.proj.weight"].zero_()
    before = torch_vit_adapter.vit_adapter(state, images(1), variant="segmentation", join="lape", **OPTIONS)
    state["pos_embed"] += 1.5 * draw("other", *state["pos_embed"].shape)
    after = torch_vit_adapter.vit_adapter(state, images(1), variant="segmentation", join="lape", **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_lape_is_a_chain():
    # All layers are given what the first one's norm leaves: if that is nothing, the table has no way to any of them.
    state = backbone("lape", grad=True)
    maps = torch_vit_adapter.vit_adapter(state, images(1), variant="segmentation", join="lape", **OPTIONS)
    maps[3].square().sum().backward()
    assert all(maximum(state[f"blocks.{layer}.pe_norm.weight"].grad) > 0 for layer in range(8))
    with torch.no_grad():
        state["blocks.0.pe_norm.weight"].zero_()
        state["blocks.0.pe_norm.bias"].zero_()
    state["pos_embed"].grad = None
    maps = torch_vit_adapter.vit_adapter(state, images(1), variant="segmentation", join="lape", **OPTIONS)
    maps[3].square().sum().backward()
    assert maximum(state["pos_embed"].grad) == 0


# ---- the whole of it


def test_maps_have_their_strides_and_the_variants_differ_where_they_should():
    state = backbone()
    windows = [None] * 8
    first, second = (
        torch_vit_adapter.vit_adapter(state, images(), variant=variant, windows=windows, **OPTIONS)
        for variant in torch_vit_adapter.VARIANTS
    )
    assert [tuple(part.shape) for part in first] == [
        (2, 16, 4 * h, 4 * w) for h, w in ((4, 6), (2, 3), (1, 1.5), (0.5, 0.75))
    ]
    assert torch.equal(first[3], second[3])  # to the map at 1/32 both add the last tokens
    assert all(maximum(a - b) > 1e-3 for a, b in zip(first[:3], second[:3], strict=True))
    windowed = torch_vit_adapter.vit_adapter(state, images(), variant="detection", window=3, **OPTIONS)
    assert maximum(windowed[3] - first[3]) > 1e-4


@pytest.mark.parametrize("train", [False, True])
def test_both_ways_of_sampling_give_the_same_model(train):
    answers = []
    for sample in (torch_deformable.sample_by_taps, torch_deformable.sample_by_grid):
        state = backbone("lape", grad=True)
        options = OPTIONS | {"attend": torch_deformable.Deformable(**DEFORMABLE, sample=sample)}
        statistics: dict = {}
        maps = torch_vit_adapter.vit_adapter(
            state, images(), variant="detection", join="lape", window=3, train=train, statistics=statistics, **options
        )
        sum((part * draw("cotangent", *part.shape)).sum() for part in maps).backward()
        assert len(statistics) == (3 * 10 if train else 0)
        names = learned(vit_adapter_shapes(tiny("lape")))
        answers.append([*maps, *statistics.values(), *(state[name].grad for name in names)])
    for first, second in zip(*answers, strict=True):
        assert maximum(first - second) <= 1e-9 * max(maximum(first), 1e-3)
