import math

import numpy as np
import pytest

from lape_jax.data import order
from lape_jax.errors import UserError


def test_an_epoch_is_a_permutation_that_never_changes():
    permutation = order.epoch_permutation(0, 0, 8)
    assert permutation.dtype == np.int64
    # Frozen: if these change, a resumed run would see other data than before.
    assert permutation.tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert order.epoch_permutation(7, 3, 8).tolist() == [2, 4, 0, 6, 7, 5, 1, 3]
    assert sorted(order.epoch_permutation(1, 5, 1000)) == list(range(1000))
    with pytest.raises(ValueError, match="read-only"):
        permutation[0] = 1


def test_epochs_and_seeds_differ():
    orders = {tuple(order.epoch_permutation(seed, epoch, 50)) for seed in (-1, 0, 1) for epoch in range(4)}
    assert len(orders) == 12


def test_every_example_is_as_likely_in_every_place():
    first = [order.epoch_permutation(3, epoch, 4)[0] for epoch in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)  # five standard deviations


def test_batches_walk_through_the_epochs_and_drop_the_rest():
    # 10 examples in batches of 4: two steps an epoch, two examples dropped.
    epochs = [order.epoch_permutation(5, epoch, 10) for epoch in range(2)]
    expected = [epochs[0][:4], epochs[0][4:8], epochs[1][:4], epochs[1][4:8]]
    for step, indices in enumerate(expected):
        np.testing.assert_array_equal(order.batch_indices(5, step, 4, 10), indices)


def test_a_batch_must_fit_the_data_set():
    assert len(order.batch_indices(0, 0, 10, 10)) == 10
    with pytest.raises(UserError, match="batch_size is 11, but must lie between 1 and the 10 training examples"):
        order.batch_indices(0, 0, 11, 10)


def dealt(permutation: np.ndarray, ranks: int, batch_size: int, repeats: int) -> list[list[int]]:
    """An epoch's batches by the rule of DeiT's RASampler, a process after the other, with drop_last."""
    size = len(permutation)
    cards = [index for index in permutation for _ in range(repeats)]
    cards += cards[: math.ceil(size * repeats / ranks) * ranks - len(cards)]
    hands = [cards[rank::ranks][: math.floor(size // 256 * 256 / ranks)] for rank in range(ranks)]
    share = batch_size // ranks
    steps = len(hands[0]) // share
    return [[i for hand in hands for i in hand[step * share : (step + 1) * share]] for step in range(steps)]


@pytest.mark.parametrize(
    ("size", "batch_size", "repeats", "ranks"),
    [(700, 64, 3, 4), (1000, 60, 3, 4), (513, 32, 3, 1), (600, 48, 3, 8), (600, 60, 3, 5), (300, 16, 2, 4)],
)
def test_repeats_are_dealt_out_as_in_deit(size, batch_size, repeats, ranks):
    steps = order.steps_per_epoch(size, batch_size, repeats, ranks)
    epochs = [dealt(order.epoch_permutation(7, epoch, size), ranks, batch_size, repeats) for epoch in range(2)]
    assert [len(epoch) for epoch in epochs] == [steps] * 2
    for step, expected in enumerate(epochs[0] + epochs[1]):
        assert order.batch_indices(7, step, batch_size, size, repeats, ranks).tolist() == expected


def test_repeats_of_an_image_go_to_different_ranks():
    batch = order.batch_indices(0, 3, 64, 1000, repeats=3, ranks=4).reshape(4, 16)  # rank by rank
    for rank in batch:
        assert len(set(rank)) == 16
    counts = np.unique(batch, return_counts=True)[1]
    assert sorted(counts)[2:] == [3] * (len(counts) - 2)  # all three in the same step, but for its first and last


def test_epochs_with_repeats_are_as_long_as_published():
    # 320,256 examples for each of 4 processes, 1251 steps of 1024: the numbers of the ImageNet recipe.
    assert order.steps_per_epoch(1_281_167, 1024, 3, 4) == 1251
    assert order.steps_per_epoch(1_281_167, 1024, 3, 8) == 1251
    assert order.steps_per_epoch(1_281_167, 1024) == 1251
    assert order.steps_per_epoch(1_281_167, 1000, 3, 4) == 1281  # 320256 // 250
    assert order.steps_per_epoch(511, 16, 3, 4) == 16  # 256 examples
    assert order.steps_per_epoch(255, 16, 3, 4) == 15  # small sets are not rounded down: 63 examples for each of 4
    assert order.steps_per_epoch(10, 8, 3, 4) == 1


def test_what_repeats_do_not_fit_is_said():
    with pytest.raises(UserError, match=r"batch_size is 30, but must be a multiple of data\.repeat_ranks, which is 4"):
        order.batch_indices(0, 0, 30, 1000, 3, 4)
    with pytest.raises(UserError, match=r"batch_size is 260, but must lie between 4 and 256 for 300 training examples"):
        order.steps_per_epoch(300, 260, 3, 4)
    with pytest.raises(UserError, match=r"data\.repeats is 0"):
        order.steps_per_epoch(300, 10, 0)
    with pytest.raises(UserError, match=r"data\.repeat_ranks 0"):
        order.steps_per_epoch(300, 10, 3, 0)


def test_hosts_share_a_batch():
    assert [list(order.Share(host, 3).positions(6)) for host in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match="6 examples cannot be shared equally by 4 processes"):
        order.Share(0, 4).positions(6)


def test_the_randomness_of_an_example_depends_on_its_place_alone():
    places = [(seed, step, position) for seed in (0, 1) for step in (0, 1, 2**40) for position in (0, 1)]
    draws = [order.augment_rng(*place).random() for place in places]
    assert len(set(draws)) == len(draws)
    assert draws == [order.augment_rng(*place).random() for place in places]
    assert order.augment_rng(0, 0, 0).random(2).tolist() == [0.8133540609793564, 0.7513314251083365]
