"""What a process reads to train on, from options that are named one by one."""

from lape_jax.data.batches import PREFETCH, Reading
from lape_jax.data.order import Order, Share


def reading(
    *,
    seed=0,
    batch_size,
    start_step=0,
    total_steps,
    threads=2,
    max_corrupt=0,
    prefetch=PREFETCH,
    repeats=1,
    repeat_ranks=4,
    process_index=0,
    process_count=1,
    **others,
):
    """The reading, and the options that are none of it."""
    order = Order(seed, batch_size, repeats, repeat_ranks)
    share = Share(process_index, process_count)
    return Reading(order, range(start_step, total_steps), share, threads, max_corrupt, prefetch), others
