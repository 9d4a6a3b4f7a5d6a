"""Which example stands where: pure functions of (seed, step, position).

There is no iterator state to save: the step is the data position. All randomness comes from Philox-4x64, a
counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The order uses its raw
64-bit stream, which NumPy promises never to change; `Generator.permutation` and its like may change (NEP 19).
"""

import functools

import numpy as np
from jaxtyping import Int64

from lape_jax.errors import UserError

# Second half of the Philox key: one independent stream per use of the seed.
_ORDER, _AUGMENT = 0, 1


def _philox(stream: int, seed: int, step: int, index: int) -> np.random.Philox:
    key = np.array([seed % 2**64, stream], np.uint64)
    # The lowest word counts the draws, so streams of different (step, index) never meet.
    return np.random.Philox(key=key, counter=np.array([0, index, step, 0], np.uint64))


@functools.lru_cache(maxsize=4)  # prefetching works on two epochs at once, at most
def epoch_permutation(seed: int, epoch: int, size: int) -> Int64[np.ndarray, " size"]:
    """The order of epoch `epoch` (from 0): a permutation of 0 .. size-1, as a read-only array."""
    keys = _philox(_ORDER, seed, epoch, 0).random_raw(size)
    permutation = np.argsort(keys, kind="stable")
    permutation.setflags(write=False)
    return permutation


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> Int64[np.ndarray, " batch_size"]:
    """The examples of the global batch of `step` (from 0) out of `size` examples.

    An epoch is size // batch_size steps; the rest of its permutation is dropped.

    Raises:
      UserError: the data set is smaller than one batch.
    """
    if not 0 < batch_size <= size:
        raise UserError(f"batch_size is {batch_size}, but must lie between 1 and the {size} training examples")
    epoch, place = divmod(step, size // batch_size)
    return epoch_permutation(seed, epoch, size)[place * batch_size : (place + 1) * batch_size]


def host_slice(batch_size: int, process_index: int, process_count: int) -> range:
    """The positions in the global batch that process `process_index` reads: an equal, contiguous share.

    Raises:
      UserError: the batch cannot be shared equally.
    """
    share, rest = divmod(batch_size, process_count)
    if rest:
        raise UserError(f"a batch of {batch_size} examples cannot be shared equally by {process_count} processes")
    return range(process_index * share, (process_index + 1) * share)


def augment_rng(seed: int, step: int, position: int) -> np.random.Generator:
    """The randomness of the example at `position` of the global batch of `step`, whoever decodes it, and when."""
    return np.random.Generator(_philox(_AUGMENT, seed, step, position))
