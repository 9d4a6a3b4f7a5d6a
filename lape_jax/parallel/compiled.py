"""Compiled programs on disk, so that a run that starts again, or another like it, need not compile them again."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from lape_jax.errors import UserError

AUTO, OFF = "auto", "off"
NAME = ".jax_cache"  # beside the workdir, so that all runs there share it


@contextlib.contextmanager
def cache(setting: str, workdir: Path, mesh: Mesh) -> Iterator[str]:
    """Programs compiled meanwhile are looked for in a directory, and put there; yields what to say of it, or "".

    A cache that JAX has been given by other means (JAX_COMPILATION_CACHE_DIR) stays the one. JAX names a program by all
    that it is made from, devices and versions among it, and compiles again what it cannot read: results are the same,
    and processes that write at the same time do not disturb each other. By itself there is none on CPUs: programs for
    one CPU may end on another with an illegal instruction, and directories are shared between machines.

    Args:
        setting: "auto", "off" or a directory.
        workdir: the directory of the run.
        mesh: the mesh of devices that it runs on.

    Raises:
        UserError: the directory that was asked for cannot be written.
    """
    before = jax.config.jax_compilation_cache_dir
    if setting == OFF or before or (setting == AUTO and mesh.devices.flat[0].platform == "cpu"):
        yield ""
        return
    directory = workdir.absolute().parent / NAME if setting == AUTO else Path(setting).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".probe").touch()
    except OSError as error:
        if setting != AUTO:
            raise UserError(f"config.compilation_cache={setting!r} cannot be written: {error.strerror}") from None
        yield f"compiled programs are not kept: {str(directory)!r} cannot be written ({error.strerror})"
        return
    _use(str(directory))
    try:
        yield f"compiled programs are kept in {directory} (--config.compilation_cache=off)"
    finally:
        _use(before)


def _use(directory: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()
