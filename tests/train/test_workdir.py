import fcntl
import json
import os

import pytest

from lape_jax.errors import UserError
from lape_jax.train import workdir as workdirs


class Data(list):
    """Examples that nobody reads, of classes that matter."""

    def __init__(self, count, *classes):
        super().__init__(range(count))
        self.classes = classes


def test_a_claimed_workdir_is_refused_to_others_until_it_is_free(tmp_path):
    with workdirs.claim(tmp_path / "run"):
        with (
            pytest.raises(UserError, match="another process trains in workdir"),
            workdirs.claim(tmp_path / "run"),
        ):
            pass
        assert list((tmp_path / "run").iterdir()) == []
    with workdirs.claim(tmp_path / "run"):
        pass


def test_a_claim_ends_with_an_error_and_passes_it_on(tmp_path):
    with pytest.raises(BlockingIOError, match="mine"), workdirs.claim(tmp_path / "run"):
        raise BlockingIOError("mine")
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def test_data_are_compared_with_those_before(tmp_path):
    train, val = Data(10, "cat", "dog"), Data(4, "cat", "dog")
    assert workdirs.compare_data(tmp_path, train, val) == []
    workdirs.write_data(tmp_path, train, val)
    assert json.loads((tmp_path / "data.json").read_text()) == {"train": 10, "val": 4, "classes": ["cat", "dog"]}
    assert workdirs.compare_data(tmp_path, train, val) == []
    assert workdirs.compare_data(tmp_path, Data(11, "cat", "dog"), val) == [
        "there were 10 train examples so far, and are 11 from here on: the order changes"
    ]


@pytest.mark.parametrize(
    ("classes", "first"),
    [(("cat", "eel"), "'dog' was there where 'eel'"), (("cat",), "'dog' was there where None"),
     (("cat", "dog", "eel"), "None was there where 'eel'")],
)  # fmt: skip
def test_other_classes_are_refused(tmp_path, classes, first):
    workdirs.write_data(tmp_path, Data(10, "cat", "dog"), Data(4))
    with pytest.raises(UserError, match=f"a run on other classes: {first} is now"):
        workdirs.compare_data(tmp_path, Data(10, *classes), Data(4))
