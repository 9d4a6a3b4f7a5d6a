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


def test_hosts_share_a_batch():
    assert [list(order.host_slice(6, host, 3)) for host in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match="6 examples cannot be shared equally by 4 processes"):
        order.host_slice(6, 0, 4)


def test_the_randomness_of_an_example_depends_on_its_place_alone():
    places = [(seed, step, position) for seed in (0, 1) for step in (0, 1, 2**40) for position in (0, 1)]
    draws = [order.augment_rng(*place).random() for place in places]
    assert len(set(draws)) == len(draws)
    assert draws == [order.augment_rng(*place).random() for place in places]
    assert order.augment_rng(0, 0, 0).random(2).tolist() == [0.8133540609793564, 0.7513314251083365]
