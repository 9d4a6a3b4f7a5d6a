"""Checkpoints: written by Orbax in the background, atomically; read back verified, newest usable first.

Layout: WORKDIR/checkpoints/STEP/{state, record}. `state` is the training state as Orbax stores any pytree; `record`
says what it must be, see record.py. Orbax writes to a temporary directory and renames it when complete, so that a kill
at any moment leaves only whole checkpoints.

With several processes all must call `save`, `restore`, `wait` and `close` alike, and see the same directory. Each
writes and reads its own part of what is sharded; process 0 writes the rest, and moves and deletes.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lape_jax.errors import UserError
from lape_jax.parallel import hosts
from lape_jax.train import record as records

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one workdir: the last `keep` ones and the one with the highest score stay, others go.

    Args:
        workdir: an existing directory; checkpoints go to its subdirectory "checkpoints".
        keep: how many of the newest to keep, at least 1.
        read_only: neither create, move nor delete anything (for evaluation, also beside a running training).

    Raises:
        UserError: `keep` is less than 1, or the directory cannot be created.
    """

    def __init__(self, workdir: str | Path, keep: int = 3, read_only: bool = False):
        if keep < 1:
            raise UserError(f"keep_checkpoints is {keep}, but at least 1 checkpoint has to be kept")
        self.directory = (Path(workdir) / "checkpoints").absolute()
        self._keep, self._read_only = keep, read_only
        self._manager: ocp.CheckpointManager | None = None
        if not read_only:
            try:
                self.directory.mkdir(exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot create the directory {self.directory} ({error.strerror})") from error
        # Whatever goes wrong in Orbax reaches us as an exception, so its own log lines would only say it twice.
        self._quiet = _NotFromOrbax()
        logging.getLogger("absl").addFilter(self._quiet)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, usable or not, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(p.name) for p in self.directory.iterdir() if re.fullmatch(r"0|[1-9]\d*", p.name) and p.is_dir()
        )

    def best_step(self) -> int | None:
        """The step of the highest score (of equal ones the first), None if no checkpoint has it."""
        return _best({step: records.score(self._record(step)) for step in self.steps()})

    def save(self, step: int, state: Any, metrics: Mapping[str, Any] | None = None) -> bool:
        """Starts saving `state`, and returns as soon as the state may be donated or changed.

        Args:
            step: the number of finished training steps.
            state: any pytree of arrays.
            metrics: numbers by name, if this state was evaluated; without them the checkpoint never counts as the best.

        Returns:
            False if this step is already saved (then nothing happens).

        Raises:
            UserError: this or the previous checkpoint could not be written (for example a full disk).
        """
        if self._manager is None:
            self._manager = self._open()
        if step in self._manager.all_steps():
            return False
        self.wait()
        record = records.make(step, state, metrics or {})
        self._policy.scores[step] = records.score(record)
        items = {"state": ocp.args.PyTreeSave(state), "record": ocp.args.JsonSave(records.seal(record))}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        return True

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, int] | None:
        """The newest usable checkpoint, bit-identical to what was saved, whatever the devices it was saved from.

        A half-written or corrupt one is passed over with a warning and set aside as "corrupt-STEP" (never deleted), so
        that its step can be saved again.

        Args:
            abstract_state: the state's structure, of jax.ShapeDtypeStruct; each leaf comes back with its `sharding`
                (on the first device, if that is None).
            step: read this checkpoint and no other.

        Returns:
            (state, step), or None if there are no checkpoints at all.

        Raises:
            UserError: a checkpoint is of another model, or there are checkpoints (or a `step`) but none is usable. In
                either case nothing has been touched.
        """
        self._release()  # it would still list what is set aside below
        steps = json.loads(hosts.gather(json.dumps(self.steps()))[0])  # network file systems show news late
        if step is not None and step not in steps:
            raise UserError(f"there is no checkpoint of step {step} in {self.directory}, only of {steps}")
        found = {s: self._record(s) for s in reversed(steps) if step in (None, s)}
        if not found:
            return None
        abstract_state = jax.tree.map(_abstract, abstract_state)
        for s, record in found.items():
            if record is not None:
                records.check_same_model(record, abstract_state, self.directory / str(s))
        unusable: dict[int, str] = {}
        for s, record in found.items():
            try:
                state = self._read(s, record, abstract_state)
            except _Unusable as error:
                unusable[s] = str(error)
                continue
            self._set_aside(unusable, instead=s)
            return state, s
        newest, reason = next(iter(unusable.items()))
        raise UserError(
            f"none of the checkpoints in {self.directory} can be used (step {newest}: {reason}); "
            "put a good copy there, or move that directory away to start from the beginning"
        )

    def wait(self) -> None:
        """Returns when the checkpoint being written is complete.

        Raises:
            UserError: it could not be written.
        """
        if self._manager is not None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:  # TensorStore reports a full disk as a ValueError
                raise self._cannot_write(error) from error

    def close(self) -> None:
        """Waits for the checkpoint being written, then lets go of everything. Raises like `wait`."""
        try:
            self._release()
        finally:
            logging.getLogger("absl").removeFilter(self._quiet)

    def _release(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.close()
            except Exception as error:
                raise self._cannot_write(error) from error

    def _open(self) -> ocp.CheckpointManager:
        if self._read_only:
            raise ValueError("these checkpoints are read-only")
        scores = {step: records.score(self._record(step)) for step in self.steps()}
        self._policy = _LastAndBest(self._keep, scores)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # trust no file of an old checkpoint: it may be corrupt
        )
        handlers = {"state": _state_handler(), "record": ocp.JsonCheckpointHandler()}
        registry = ocp.handlers.create_default_handler_registry(**handlers)
        return ocp.CheckpointManager(self.directory, options=options, handler_registry=registry)

    def _record(self, step: int) -> dict | None:
        try:
            return records.unseal(ocp.JsonCheckpointHandler().restore(self.directory / str(step) / "record"))
        except Exception:  # a damaged file can raise anything
            return None

    def _read(self, step: int, record: dict | None, abstract_state: Any) -> Any:
        _check_usable("its record is missing or damaged" if record is None else "")
        reason, state = "", None
        try:
            # Not through a Checkpointer, which would let a process that can read wait for one that cannot.
            with contextlib.closing(_state_handler()) as reader:
                how = ocp.checkpoint_utils.construct_restore_args(abstract_state)
                # Partial, for fields without arrays that checkpoints of older versions lack; of arrays none may lack.
                args = ocp.args.PyTreeRestore(abstract_state, restore_args=how, partial_restore=True)
                state = reader.restore(self.directory / str(step) / "state", args=args)
                if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
                    reason = "arrays are missing"
        except Exception as error:  # a damaged file can raise anything
            reason = f"reading it failed: {_one_line(error)}"
        _check_usable(reason)
        changed = records.first_changed(record, state)
        if changed is not None:
            raise _Unusable(f"{changed!r} is not what was saved: its digest differs")
        return state

    def _set_aside(self, unusable: Mapping[int, str], instead: int) -> None:
        if jax.process_index() == 0:
            for step, reason in unusable.items():
                moved = "" if self._read_only else f", it is now {self._move(step)}"
                _log.warning("checkpoint %d is passed over for %d%s: %s", step, instead, moved, reason)
        hosts.barrier("set aside")  # nobody goes on before the moves

    def _move(self, step: int) -> str:
        names = itertools.chain([f"corrupt-{step}"], (f"corrupt-{step}-{n}" for n in itertools.count(2)))
        free = next(name for name in names if not (self.directory / name).exists())
        (self.directory / str(step)).rename(self.directory / free)
        return free

    def _cannot_write(self, error: Exception) -> UserError:
        return UserError(f"cannot write a checkpoint to {self.directory}: {_one_line(error)}")


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    # Replica-parallel writing (Orbax's default) slices every replicated array on its devices: one compilation per shape
    # at the first save, three seconds for a small ViT on eight devices. One replica writes fast enough for our sizes.
    arrays = _Arrays(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _Arrays(ocp.type_handlers.ArrayHandler):
    """Reads arrays as Orbax does, but lets every read end before an error leaves.

    Orbax closes its event loop on the first error; the reads still under way would each print "Event loop is closed".
    """

    async def deserialize(self, infos, args=None):
        before = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except Exception:
            await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
            raise


class _LastAndBest:
    """Orbax's PreservationPolicy protocol: the newest `keep` checkpoints, and the best by `scores`, are preserved."""

    def __init__(self, keep: int, scores: dict[int, float | None]):
        self.keep, self.scores = keep, scores

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], _best({step: self.scores.get(step) for step in steps})}
        return [step in kept for step in steps]


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "/orbax/checkpoint/" not in record.pathname


class _Unusable(Exception):
    """Why a checkpoint cannot be used."""


def _best(scores: Mapping[int, float | None]) -> int | None:
    known = {step: score for step, score in scores.items() if score is not None}
    return min(known, key=lambda step: (-known[step], step), default=None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_usable(reason: str) -> None:
    """Raises _Unusable on all processes if one of them has a reason to."""
    for found in hosts.gather(reason):
        if found:
            raise _Unusable(found)
