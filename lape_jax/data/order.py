"""Which example stands where: pure functions of (seed, step, position).

There is no iterator state to save: the step is the data position. All randomness comes from Philox-4x64, a
counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The order uses its raw
64-bit stream, which NumPy promises never to change; `Generator.permutation` and its like may change (NEP 19).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from lape_jax.errors import UserError

# Second half of the Philox key: one independent stream per use of the seed.
_ORDER, _AUGMENT = 0, 1
# DeiT's sampler keeps a multiple of so many examples, whatever the batch size.
_WHOLE = 256


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


def steps_per_epoch(size: int, batch_size: int, repeats: int = 1, ranks: int = 4) -> int:
    """How many batches of `batch_size` an epoch over `size` examples has; what does not fill a batch is dropped.

    Without repeats: size // batch_size. With repeats: see `batch_indices`.

    Raises:
      UserError: there is not even one batch, or `ranks` processes cannot share a batch equally.
    """
    if repeats < 1 or ranks < 1:
        raise UserError(f"data.repeats is {repeats} and data.repeat_ranks {ranks}, but both must be at least 1")
    if repeats == 1:
        if not 0 < batch_size <= size:
            raise UserError(f"batch_size is {batch_size}, but must lie between 1 and the {size} training examples")
        return size // batch_size
    share, rest = divmod(batch_size, ranks)
    if rest:
        raise UserError(f"batch_size is {batch_size}, but must be a multiple of data.repeat_ranks, which is {ranks}")
    kept = (size // _WHOLE * _WHOLE if size >= _WHOLE else size) // ranks
    if not 0 < share <= kept:
        raise UserError(
            f"batch_size is {batch_size}, but must lie between {ranks} and {ranks * kept} for {size} training examples "
            f"with data.repeats = {repeats} and data.repeat_ranks = {ranks}"
        )
    return kept // share


def batch_indices(
    seed: int, step: int, batch_size: int, size: int, repeats: int = 1, ranks: int = 4
) -> Int64[np.ndarray, " batch_size"]:
    """The examples of the global batch of `step` (from 0) out of `size` examples, by position in the batch.

    repeats = 1: every example once an epoch, in the order of `epoch_permutation`; an epoch is size // batch_size steps.

    repeats > 1: repeated augmentation (Hoffer et al., "Augment your batch", CVPR 2020) as DeiT and LaPE train with it
    (facebookresearch/deit, samplers.py), with R = `ranks` emulated processes. The permutation with every example
    `repeats` times in a row is dealt out to the processes like cards, so that the copies of an image go to different
    ones. Each keeps floor(floor(size / 256) * 256 / R) examples an epoch (sets of fewer than 256 examples are not
    rounded down: floor(size / R)), takes batch_size / R of them a step, and drops the last ones if they are too few.
    The global batch is the batches of the processes, one after the other. So an epoch has about as many steps as
    without repeats, and sees only one in `repeats` of the images; which processes really run does not matter.

    Raises:
      UserError: as `steps_per_epoch`.
    """
    epoch, place = divmod(step, steps_per_epoch(size, batch_size, repeats, ranks))
    permutation = epoch_permutation(seed, epoch, size)
    if repeats == 1:
        return permutation[place * batch_size : (place + 1) * batch_size]
    share = batch_size // ranks
    rank, turn = np.divmod(np.arange(batch_size), share)
    return permutation[((place * share + turn) * ranks + rank) // repeats]


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples the batches of a run hold.

    Attributes:
        seed: that orders them.
        batch_size: examples of a step's batch, over all processes.
        repeats, ranks: copies of an example in an epoch, and the processes that these fall to, see `batch_indices`.
    """

    seed: int
    batch_size: int
    repeats: int = 1
    ranks: int = 4

    @classmethod
    def of(cls, config: Any) -> "Order":
        """That of a run with this config."""
        return cls(config.seed, config.batch_size, config.data.repeats, config.data.repeat_ranks)

    def indices(self, step: int, size: int) -> Int64[np.ndarray, " b"]:
        """The examples of the batch of `step` out of `size`. Raises UserError as `steps_per_epoch`."""
        return batch_indices(self.seed, step, self.batch_size, size, self.repeats, self.ranks)

    def steps_per_epoch(self, size: int) -> int:
        """Batches of an epoch over `size` examples. Raises UserError if there are none, see `steps_per_epoch`."""
        return steps_per_epoch(size, self.batch_size, self.repeats, self.ranks)


class Share(NamedTuple):
    """What one process makes of every batch: the `index`-th of `count` equal parts, consecutive rows."""

    index: int = 0
    count: int = 1

    def positions(self, batch_size: int) -> range:
        """Positions of the part in the global batch. Raises UserError if the batch cannot be shared equally."""
        rows, rest = divmod(batch_size, self.count)
        if rest:
            raise UserError(f"a batch of {batch_size} examples cannot be shared equally by {self.count} processes")
        return range(self.index * rows, (self.index + 1) * rows)


ALL = Share()  # of one process


def augment_rng(seed: int, step: int, position: int) -> np.random.Generator:
    """The randomness of the example at `position` of the global batch of `step`, whoever decodes it, and when."""
    return np.random.Generator(_philox(_AUGMENT, seed, step, position))
