import numpy as np

from lape_jax.augment.photometric import normalise
from tests.quick import jit


def test_normalise_by_hand():
    images = np.asarray([0, 51, 255, 102], np.uint8).reshape(1, 2, 1, 2)  # 0, 0.2, 1 and 0.4 of full scale
    found = jit(lambda images: normalise(images, (0.5, 0.1), (0.25, 0.1)))(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(-1), [-2, 1, 2, 3], rtol=1e-6)
