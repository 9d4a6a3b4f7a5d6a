"""Several processes that train together, usually one per host: how they start, agree, and end together.

Every process runs the same command; JAX makes their devices one set. Who is who comes from `config.distributed`, from
JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID and JAX_NUM_PROCESSES, or from what `jax.distributed` recognises by itself:
Slurm, Open MPI, TPU slices. Process 0 writes the workdir, which all must see.

An error on one process would leave the others waiting in their next collective operation. So each one watches for the
failure of another, in JAX's key-value store, and ends with the same exit code. A process that dies without a word
(kill -9, a lost machine) is missed by `jax.distributed`: at once if it was process 0, else after HEARTBEAT seconds.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.models import rules

CONNECT = 300  # seconds until all processes must have started
HEARTBEAT = 100  # seconds without a sign of life after which a process counts as dead
AUTO = "auto"
_KEYS = {"coordinator_address": "coordinator", "num_processes": "process_count", "process_id": "process_id"}
_FAILED, _KNOWS, _GONE = "lape_jax/failed", "lape_jax/knows", "lape_jax/gone"
_POLL, _GRACE, _LAST = 0.5, 1.0, 10.0  # seconds: between looks, to speak for oneself, to wait for the others at the end


@contextlib.contextmanager
def together(config: ConfigDict, explain: Callable[[BaseException], int], connect: int = CONNECT) -> Iterator[None]:
    """Starts the processes of this job, if there are several, and ends them together: all well, or all with an error.

    To be entered before the first JAX computation. With one process it does nothing.

    Args:
        config: the config of the run, the same on every process but for `distributed`.
        explain: says what an exception means, and returns the exit code.
        connect: seconds to wait for the other processes.

    Raises:
        UserError: half of the settings, settings that contradict each other, or another config than process 0 has.
            If the others cannot be reached in time, the process ends with that line and exit code 2.
    """
    arguments = settings(config.distributed, os.environ)
    if arguments is not None:
        _connect(arguments, connect)
    elif jax.process_count() > 1:  # a TPU slice knows its devices without jax.distributed
        raise UserError(
            f"this is one of the {jax.process_count()} processes of a TPU slice: add "
            f"--config.distributed.coordinator={AUTO}"
        )
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch()
    try:
        _check_same(config, arguments)
        yield
        barrier("end")  # nobody leaves while another may still fail
    except BaseException as error:
        watch.fail(error, explain)
    watch.stop()


def settings(distributed: Any, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments for `jax.distributed.initialize`; None for a job of one process.

    `distributed.coordinator` ("host:port" of process 0, or "auto": ask JAX), `process_id` and `process_count`, each
    where unset the environment's. A launcher (Slurm, Open MPI, GKE and multislice TPUs) that says it started several
    processes completes them, through JAX.

    Raises:
        UserError: some of the settings without the others and without a launcher, or impossible ones.
    """
    count = distributed.process_count or _integer(environ, "JAX_NUM_PROCESSES")
    index = distributed.process_id if distributed.process_id >= 0 else _integer(environ, "JAX_PROCESS_ID")
    address = distributed.coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    known = {name: value for name, value in given.items() if value not in (None, "")}
    if count is not None and not 0 <= (index or 0) < count:
        raise UserError(
            f"config.distributed.process_id (or JAX_PROCESS_ID) is {index}, but must lie between 0 and "
            f"process_count - 1 = {count - 1}"
        )
    if address == AUTO:
        return {name: value for name, value in known.items() if name != "coordinator_address"}
    if address and not re.fullmatch(r".+:\d+", address):
        raise UserError(
            f"config.distributed.coordinator (or JAX_COORDINATOR_ADDRESS) is {address!r}: it must be host:port of "
            f"process 0, or {AUTO}"
        )
    if count == 1:
        return None
    if len(known) == len(given):
        return {**known, "cluster_detection_method": "deactivate"}
    if _launched_together(environ):
        return known
    if known:
        raise UserError(
            "several processes need all of config.distributed.coordinator, process_id and process_count (or "
            "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID and JAX_NUM_PROCESSES), but there is only "
            + " and ".join(f"{_KEYS[name]} {value}" for name, value in known.items())
        )
    return None


def store() -> Any:
    """JAX's key-value store, which all processes of the job share and which needs no device: `key_value_set` and so on.

    Its methods raise RuntimeError where there is no such key, or already one.
    """
    return ocp.multihost.get_jax_distributed_client()


def gather(text: str) -> list[str]:
    """What every process says, in the order of their indices. All of them must call it, in the same order."""
    if jax.process_count() == 1:
        return [text]
    encoded = text.encode()
    longest = multihost_utils.process_allgather(np.int32(len(encoded))).max()
    # Lengths are rounded up, because each new one is compiled.
    padded = np.frombuffer(encoded.ljust(1 << int(longest).bit_length(), b"\0"), np.uint8)
    return [row.tobytes().rstrip(b"\0").decode() for row in multihost_utils.process_allgather(padded)]


def barrier(name: str) -> None:
    """Returns when all processes have come here: all must call it, with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fail_together(error: UserError | None) -> None:
    """Raises UserError on all processes if any of them has an `error`; all must call it."""
    said = gather("" if error is None else str(error))
    if error is not None:
        raise error
    for index, text in enumerate(said):
        if text:
            raise UserError(f"process {index}: {text}")


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if text and not text.isdecimal():
        raise UserError(f"{name} is {text!r}: it must be a whole number")
    return int(text) if text else None


def _launched_together(environ: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows says that it started several processes. (On one host nobody should have to
    wait for cluster services to answer, so JAX is not asked.)"""
    sizes = [environ.get("OMPI_COMM_WORLD_SIZE", "1"), environ.get("MEGASCALE_NUM_SLICES", "1")]
    if "SLURM_STEP_NODELIST" in environ:  # by srun; a batch script alone has only the numbers
        sizes.append(environ.get("SLURM_NTASKS", "1"))
    hosts = (environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")).split(",")
    # libtpu leaves a sentence there where it finds no names.
    several_hosts = len(hosts) > 1 and all(re.fullmatch(r"[\w.:\[\]-]+", host) for host in hosts)
    on_tpu = "tpu" in environ.get("JAX_PLATFORMS", "tpu")
    return any(size.isdecimal() and int(size) > 1 for size in sizes) or (several_hosts and on_tpu)


def _connect(arguments: dict[str, Any], seconds: int) -> None:
    if arguments.get("process_id") == 0 and "coordinator_address" in arguments:
        _check_port(arguments["coordinator_address"])
    jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM to itself; see signals.py
    # Where JAX gives up it aborts with a stack trace; so this gives up before.
    timer = threading.Timer(seconds, _give_up, (arguments, seconds))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=seconds + 60, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"cannot start together with the other processes: {error}") from error
    finally:
        timer.cancel()


def _check_port(address: str) -> None:
    """Raises UserError if process 0 cannot serve there, where JAX would die of a segmentation fault."""
    two_in_one = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        socket.create_server(("", int(address.rpartition(":")[2])), **two_in_one).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"process 0 cannot serve at the coordinator's port ({address}): {error}") from None


def _give_up(arguments: dict[str, Any], seconds: int) -> None:
    index, count, address = (
        arguments.get(name, AUTO) for name in ("process_id", "num_processes", "coordinator_address")
    )
    print(
        f"error: not all processes met within {seconds} seconds (this is process {index} of {count}, coordinator "
        f"{address}): each needs a process_id of its own, from 0, the same process_count, and the address of process 0",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _check_same(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """Raises UserError unless all processes have the same idea of the job."""
    expected = arguments.get("num_processes", jax.process_count())
    if jax.process_count() != expected:
        raise UserError(f"there are {jax.process_count()} processes, but this one was told of {expected}")
    ours = {name: value for name, value in config.to_dict().items() if name != "distributed"}
    first, *others = [rules.flat_names(json.loads(text)) for text in gather(json.dumps(ours))]
    for index, other in enumerate(others, start=1):
        for name in sorted({*first, *other}):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"process {index} was started with another config: config.{name.replace('/', '.')} is "
                    f"{other.get(name)!r} there, and {first.get(name)!r} for process 0"
                )


class _Watch:
    """Ends this process if another one has failed, whatever it is waiting for."""

    def __init__(self):
        self._store = store()
        self._over = threading.Event()  # there is nothing to watch for any more
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def fail(self, error: BaseException, explain: Callable[[BaseException], int]) -> None:
        """Ends this process and the others because of `error`; see `together`."""
        self.stop()  # this is the end where another one has failed before, whose end may be all that is wrong here
        code = explain(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("error: if another process has died, start all of them again: the run resumes", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        text = " ".join(str(error).split()) or type(error).__name__
        failure = {"process": jax.process_index(), "code": code, "text": text[:2000]}
        with contextlib.suppress(RuntimeError):  # another one may have been the first, and that is enough
            self._store.key_value_set(_FAILED, json.dumps(failure))
        self._leave(code)

    def _look(self) -> None:
        while not self._over.wait(_POLL):
            try:
                failure = json.loads(self._store.key_value_try_get(_FAILED))
            except RuntimeError:  # there is none
                continue
            # A mistake that all have made, each one explains by itself.
            if not self._over.wait(_GRACE):
                print(f"error: process {failure['process']}: {failure['text']}", file=sys.stderr, flush=True)
                self._leave(failure["code"])

    def _leave(self, code: int) -> None:
        # Not before all know: a process that is gone breaks the others' collective operations, which would hide the
        # reason. And process 0, which holds the store, is the last. (sys.exit would wait in JAX, for minutes.)
        index = jax.process_index()
        others = [other for other in range(jax.process_count()) if other != index]
        end = time.monotonic() + _LAST
        with contextlib.suppress(RuntimeError):  # too late, or process 0 is gone
            self._store.key_value_set(f"{_KNOWS}/{index}", "")
            self._wait_for(_KNOWS, others, end)
            if index == 0:
                self._wait_for(_GONE, others, end)
                time.sleep(_POLL)
            else:
                self._store.key_value_set(f"{_GONE}/{index}", "")
        os._exit(code)

    def _wait_for(self, name: str, processes: list[int], end: float) -> None:
        for index in processes:
            self._store.blocking_key_value_get(f"{name}/{index}", max(1, int(1000 * (end - time.monotonic()))))
