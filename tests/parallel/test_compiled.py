"""The directory of compiled programs: where it is, when there is none, what is in it; JAX is left as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.parallel import compiled, sharding
from tests.nn.test_choice import CPU, HOPPER


@pytest.fixture(autouse=True)
def _without_the_cache_of_the_tests():
    before, least = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    compiled._use(None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compiled._use(before)


def test_it_lies_beside_the_workdir(tmp_path):
    directory = tmp_path / "runs" / ".jax_cache"
    with compiled.cache("auto", tmp_path / "runs" / "one", HOPPER.mesh) as said:
        assert jax.config.jax_compilation_cache_dir == str(directory)
        assert said == f"compiled programs are kept in {directory} (--config.compilation_cache=off)"
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(("setting", "devices"), [("off", HOPPER), ("auto", CPU)])
def test_there_is_none(setting, devices, tmp_path):
    with compiled.cache(setting, tmp_path / "runs" / "one", devices.mesh) as said:
        assert (said, jax.config.jax_compilation_cache_dir) == ("", None)
    assert not list(tmp_path.iterdir())


def test_that_of_jax_stays(tmp_path):
    compiled._use(str(tmp_path))
    with compiled.cache("auto", tmp_path / "runs" / "one", HOPPER.mesh) as said:
        assert (said, jax.config.jax_compilation_cache_dir) == ("", str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"config.compilation_cache='.*/file/dir' cannot be written: Not a directory"):
        compiled.cache(str(tmp_path / "file" / "dir"), tmp_path, CPU.mesh).__enter__()
    with compiled.cache("auto", tmp_path / "file" / "runs" / "one", HOPPER.mesh) as said:
        assert said.startswith("compiled programs are not kept: ")
        assert jax.config.jax_compilation_cache_dir is None


def test_programs_are_found_again_and_what_is_damaged_is_compiled_again(tmp_path):
    def result():
        jax.clear_caches()
        return np.asarray(jax.jit(lambda x: jnp.sin(x) * 3 + 1)(jnp.arange(5.0)))

    expected = result()
    with compiled.cache(str(tmp_path / "programs"), tmp_path, sharding.data_mesh()):
        result()
        (entry,) = (tmp_path / "programs").glob("*lambda*-cache")
        written = entry.stat().st_mtime_ns
        np.testing.assert_array_equal(result(), expected)
        assert entry.stat().st_mtime_ns == written
        entry.write_bytes(entry.read_bytes()[:100])  # as another process may have left it, or be about to write it
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
            np.testing.assert_array_equal(result(), expected)
