"""What a run that waits for its data says."""

import os
from unittest import mock

from lape_jax.tasks.config import base
from lape_jax.train import feed


def hint(**data):
    config = base()
    config.task = data.pop("task", "classify")
    config.data.update(data)
    with mock.patch.object(os, "cpu_count", return_value=4):
        return feed.hint(config)


def test_what_helps_depends_on_the_run():
    assert hint(threads=2) == (
        "the devices wait for data: what helps is --config.data.threads=4, --config.data.resident=true for a set that "
        "fits on the device, a smaller copy of the images (--short of python -m lape_jax.prepare) or a packed one "
        "(python -m lape_jax.prepare pack)"
    )
    assert "threads" not in hint(threads=4)
    assert "packed" not in hint(source="packed")
    assert hint(threads=4, task="detect") == (
        "the devices wait for data: what helps is a smaller copy of the images (--short of python -m lape_jax.prepare)"
    )
