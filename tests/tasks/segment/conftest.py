"""The tiny data sets of tests/data."""

from tests.data.conftest import encode, photo, write_tfds

__all__ = ["encode", "photo", "write_tfds"]
