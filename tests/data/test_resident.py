import logging

import numpy as np
import pytest

from lape_jax.data import resident
from lape_jax.data.pipeline import eval_batches
from lape_jax.data.sources import digits
from lape_jax.errors import UserError


def test_digits_are_loaded_pixel_for_pixel():
    source = digits("val")
    data = resident.load(source, size=8, channels=1, crop_ratio=1.0, threads=2)
    assert {field: (array.shape, str(array.dtype)) for field, array in data.items()} == {
        "image": ((359, 8, 8, 1), "uint8"),
        "label": ((359,), "int32"),
        "mask": ((359,), "float32"),
    }
    np.testing.assert_array_equal(data["image"], source.images)
    np.testing.assert_array_equal(data["label"], source.labels)
    assert data["mask"].all()


def test_what_is_loaded_is_what_evaluation_sees(numbered):
    source = numbered(70)
    options = {"size": 6, "channels": 3, "crop_ratio": 0.8, "threads": 3}
    data = resident.load(source, **options)
    (batch,) = eval_batches(source, batch_size=70, **options)
    for field, array in data.items():
        np.testing.assert_array_equal(array, batch[field])


def test_a_corrupt_image_keeps_its_place(encode, photo, encoded_source, caplog):
    source = encoded_source([encode(photo), b"junk", encode(photo)])
    options = {"size": 4, "channels": 3, "crop_ratio": 1.0, "threads": 2}
    with caplog.at_level(logging.WARNING):
        data = resident.load(source, **options, max_corrupt=1)
    assert data["mask"].tolist() == [1, 0, 1]
    assert data["label"].tolist() == [0, 0, 2]
    assert not data["image"][1].any()
    np.testing.assert_array_equal(data["image"][0], data["image"][2])
    assert "image 1 cannot be read: it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image" in caplog.text
    with pytest.raises(UserError, match="image 1 cannot be read: it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image"):
        resident.load(source, **options)
