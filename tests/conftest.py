"""Runs before any test imports JAX: eight CPU devices, cheap compilation, shape types checked at run time."""

import ctypes
import gc
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "lape_jax_tests_jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

from tests import quick, shape_types

FLAGS = f"--xla_force_host_platform_device_count=8 {quick.FLAGS}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
shape_types.install("lape_jax")

MOST_MEMORY = 900 * 2**20
# Tracing makes many small objects: collections at the default threshold took a tenth of the time.
gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process: they share its fixtures, and their compiled programs."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # the order of pytest_collection_modifyitems, and not by number of tests
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """Whole runs, right in tests/, come first: else one process would be left alone with them in the end."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.fixture(autouse=True)
def _bounded_memory():
    """Compiled programs are dropped once a process has grown to MOST_MEMORY; until then the next tests use them."""
    yield
    if _resident() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what is freed, unless it is told
            ctypes.CDLL(None).malloc_trim(0)


def _resident() -> float:
    """Bytes of memory that this process holds now; infinite where that cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")
