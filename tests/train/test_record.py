"""What a checkpoint says about itself: digests by hand, the checksum, and the metric."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lape_jax.train import record


def test_digest_depends_on_values_and_not_on_their_place():
    x = np.array([1, 2, 2**31, 2**31], np.uint32)
    assert record.digests({"a": x, "b": np.array([3, 5], np.uint16), "c": np.array([2**32 + 9], np.int64)}) == [
        3,
        8,
        10,
    ]
    wide = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    for spec in (PartitionSpec(), PartitionSpec("x"), PartitionSpec("y", None), PartitionSpec("x", "y")):
        assert record.digests([jax.device_put(wide, NamedSharding(mesh, spec))]) == record.digests([wide])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.bool_])
def test_any_flipped_bit_changes_the_digest(dtype):
    x = np.zeros(5, dtype)
    flipped = [x.copy() for _ in range(8 if dtype is not np.bool_ else 1)]
    for bit, y in enumerate(flipped):
        y.view(np.uint8)[-1] ^= 1 << bit
    digests = {record.digests([y])[0] for y in (x, *flipped)}
    assert len(digests) == len(flipped) + 1


def test_a_record_is_sealed():
    made = record.make(7, {"w": np.ones((2, 3), np.float32)}, {"val/top1": np.float32(0.5)})
    one = 0x3F800000
    assert made == {
        "step": 7,
        "metrics": {"val/top1": 0.5},
        "tree": {"w": {"shape": (2, 3), "dtype": "float32", "digest": 6 * one % 2**32}},
    }
    sealed = record.seal(made)
    assert record.unseal(sealed)["tree"]["w"]["shape"] == [2, 3]
    with pytest.raises(ValueError, match="damaged"):
        record.unseal({**sealed, "record": sealed["record"].replace("[2, 3]", "[3, 2]")})


def test_a_score_is_a_finite_number_or_none():
    assert record.score({"metrics": {"val/top1": 0.25}}) == 0.25
    assert record.score({"metrics": {"val/top1": float("nan")}}) is None
    assert record.score({"metrics": {}}) is None
    assert record.score(None) is None
