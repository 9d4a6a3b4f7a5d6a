"""What a checkpoint says about its state, so that it can be checked: names, shapes, dtypes, digests, and metrics."""

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lape_jax import tasks
from lape_jax.errors import UserError
from lape_jax.models import rules


def make(step: int, state: Any, metrics: Mapping[str, Any]) -> dict:
    """The record of `state`: {"step", "metrics", "tree": {name: {"shape", "dtype", "digest"}}}, ready for JSON."""
    tree = {
        name: {"shape": leaf.shape, "dtype": leaf.dtype.name, "digest": digest}
        for (name, leaf), digest in zip(rules.flat_names(state).items(), digests(state), strict=True)
    }
    return {"step": step, "metrics": {name: float(value) for name, value in metrics.items()}, "tree": tree}


def first_changed(record: dict, state: Any) -> str | None:
    """The name of the first array of `state` whose digest is not the recorded one, None if all are."""
    named = zip(rules.flat_names(state), digests(state), strict=True)
    return next((name for name, digest in named if digest != record["tree"][name]["digest"]), None)


def digests(state: Any) -> list[int]:
    """Sums the raw words of every array of `state`, modulo 2^32 (a word is 4 bytes, or the smaller element).

    Computed on the host from one copy of each distinct shard, so it depends on the values alone, not on how the array
    is laid out. (Under jit it would cost a second of compilation; the host copies are what Orbax needs anyway.)
    """
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    sums = np.array([_digest(leaf) for leaf in jax.tree.leaves(state)], np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    return sums.tolist()


def _digest(leaf: Any) -> int:
    if isinstance(leaf, jax.Array):
        parts = [np.asarray(shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0]
    else:
        parts = [np.asarray(leaf)] if jax.process_index() == 0 else []
    total = 0
    for part in parts:
        words = np.ascontiguousarray(part).reshape(-1).view(f"u{min(part.dtype.itemsize, 4)}")
        total += int(np.sum(words, dtype=np.uint32))
    return total % 2**32


def score(record: Mapping | None) -> float | None:
    """The finite value of the task's score, None if the record has none (or there is no record)."""
    metrics = record["metrics"] if record else {}
    value = next((metrics[name] for name in tasks.scores() if name in metrics), None)
    return value if value is not None and math.isfinite(value) else None


def seal(record: dict) -> dict:
    """The record with a checksum of its own: a flipped digit must not look like another model."""
    text = json.dumps(record)
    return {"crc32": zlib.crc32(text.encode()), "record": text}


def unseal(sealed: dict) -> dict:
    """The record that was sealed. Raises ValueError (or whatever damage leads to) if it is not as it was."""
    if zlib.crc32(sealed["record"].encode()) != sealed["crc32"]:
        raise ValueError("the record is damaged")
    return json.loads(sealed["record"])


def check_same_model(record: dict, abstract_state: Any, directory: Path) -> None:
    """Raises UserError with the first array whose presence, shape or dtype differs, parameters before all else."""

    def shown(entry):
        return f"{tuple(entry[0])} {entry[1]}" if entry else "absent"

    saved = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in record["tree"].items()}
    wanted = {name: (leaf.shape, leaf.dtype.name) for name, leaf in rules.flat_names(abstract_state).items()}
    names = sorted({**wanted, **saved}, key=lambda name: not name.startswith("params/"))  # stable: they tell the most
    for name in names:
        if saved.get(name) != wanted.get(name):
            there, here = shown(saved.get(name)), shown(wanted.get(name))
            classes = [entry[name][0][-1] for entry in (saved, wanted) if name in entry and entry[name][0]]
            if re.search(r"(^|/)head(_dist)?/(bias|kernel)$", name) and len(set(classes)) == 2:
                raise UserError(
                    f"{directory} is a checkpoint of a model of {classes[0]} classes, and the data have {classes[1]}: "
                    f"use the data it was trained on, or another --workdir"
                )
            raise UserError(
                f"{directory} is a checkpoint of another model: {name!r} is {there} there but {here} in this one; use "
                f"the config it was trained with, or another --workdir"
            )
