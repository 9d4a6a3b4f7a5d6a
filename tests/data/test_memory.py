"""Memory that is used again: never while anybody can still see it."""

import gc

import jax.numpy as jnp
import numpy as np

from lape_jax.data.memory import Recycled


def place(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_holds_it():
    memory = Recycled()
    first = memory.empty((4, 100), np.int32)
    before = place(first)
    second = memory.empty((4, 100), np.int32)
    assert place(second) != before
    del first
    assert place(memory.empty((400,), np.float32)) == before  # of as many bytes


def test_a_view_of_a_view_keeps_it():
    memory = Recycled()
    array = memory.empty((8,), np.float32)
    view = array[2:].reshape(2, 3)[1]
    view[:] = 7
    del array
    for _ in range(3):
        memory.empty((8,), np.float32)[:] = 0
    assert view.tolist() == [7, 7, 7]


def test_what_jax_made_of_it_stays():
    memory = Recycled()
    array = memory.empty((64, 1024), np.float32)
    array[:] = 3
    made = [jnp.asarray(array), jnp.asarray(array[:32])]  # of aligned memory without a copy
    del array
    gc.collect()
    for _ in range(3):
        memory.empty((64, 1024), np.float32)[:] = 0
    assert all((np.asarray(one) == 3).all() for one in made)
