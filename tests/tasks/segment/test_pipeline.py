import gc
import logging
import threading
import time

import numpy as np
import pytest

from lape_jax.data import order
from lape_jax.errors import UserError
from lape_jax.tasks.segment import masks
from lape_jax.tasks.segment import transforms as scene_transforms
from lape_jax.tasks.segment.pipeline import View, scenes, train_scene_batches
from lape_jax.tasks.segment.scene import Scene
from tests.reading import reading

CROP = {"size": 8, "scale": (20, 12), "scale_range": (0.5, 2.0), "max_class": 0.75, "flip": True, "distort": True}


class Source:
    """Scenes of 10 x 14 noise with maps of three classes; some entries can be replaced; counts reads at a time."""

    classes = ("a", "b", "c")

    def __init__(self, count, **replaced):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, 10, 14, 3), np.uint8)
        self.masks = np.kron(rng.integers(0, 3, (count, 5, 7)), np.ones((2, 2), int)).astype(np.uint8)
        self.replaced = {int(name[1:]): value for name, value in replaced.items()}
        self.reads, self.gate = 0, threading.Event()
        self.gate.set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        self.gate.wait()
        image, mask = self.replaced.get(index, (self.images[index], self.masks[index]))
        return Scene(image, mask, f"scene {index}")


def train(source, **changes):
    options = {
        "seed": 3,
        "batch_size": 4,
        "start_step": 0,
        "total_steps": 7,
        "channels": 3,
        "threads": 4,
        "max_corrupt": 0,
    }
    asked, view = reading(**{**options, **CROP, **changes})
    return train_scene_batches(source, asked, View(**view))


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for field in ("image", "label", "mask"):
            np.testing.assert_array_equal(batch[field], other[field])


def wait_until(condition):
    """Waits up to 20 seconds for what should happen at once, also on a busy machine."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scenes")]


def test_batches_hold_what_the_order_says():
    source = Source(30)
    batches = list(train(source, batch_size=12))
    assert len(batches) == 7
    for step, batch in enumerate(batches):
        assert {field: (array.shape, str(array.dtype)) for field, array in batch.items()} == {
            "image": ((12, 8, 8, 3), "uint8"),
            "label": ((12, 8, 8), "int32"),
            "mask": ((12,), "float32"),
        }
        assert batch["mask"].tolist() == [1] * 12
        for position, index in enumerate(order.batch_indices(3, step, 12, 30)):
            pixels, labels = masks.decode_scene(source[int(index)], 3, 3)
            rng = order.augment_rng(3, step, position)
            image, label = scene_transforms.train_scene(pixels, labels, rng=rng, **CROP)
            np.testing.assert_array_equal(batch["image"][position], image)
            np.testing.assert_array_equal(batch["label"][position], label)
    assert {-2, 0, 1, 2} == set(np.unique([batch["label"] for batch in batches]))


def test_threads_do_not_matter():
    source = Source(30)
    assert_same(train(source, batch_size=20, threads=1), train(source, batch_size=20, threads=4))


@pytest.mark.parametrize("start", [1, 6])
def test_resuming_gives_the_rest_of_the_run(start):
    source = Source(10)
    assert_same(train(source, start_step=start), list(train(source))[start:])


def test_hosts_together_make_the_batches_of_one():
    source = Source(30)
    shares = [list(train(source, batch_size=12, process_index=host, process_count=3)) for host in range(3)]
    whole = [
        {field: np.concatenate([share[field] for share in step]) for field in ("image", "label", "mask")}
        for step in zip(*shares, strict=True)
    ]
    assert_same(whole, train(source, batch_size=12))


def test_the_same_scene_is_cropped_anew_each_time():
    batches = list(train(Source(1), batch_size=1))
    assert len({batch["image"].tobytes() for batch in batches}) == 7


def test_a_scene_that_cannot_be_read_is_masked_named_and_counted_once(encode, photo, caplog):
    grey = encode(np.zeros((40, 60, 1), np.uint8))
    source = Source(6, _2=(encode(photo), grey[:40]), _4=(b"", grey))
    with caplog.at_level(logging.WARNING):
        batches = train(source, batch_size=3, total_steps=6, max_corrupt=2)
        for step, batch in enumerate(batches):
            bad = np.isin(order.batch_indices(3, step, 3, 6), [2, 4])
            np.testing.assert_array_equal(batch["mask"], 1 - bad)
            assert not batch["image"][bad].any()
            assert not batch["label"][bad].any()
    assert set(batches.corrupt) == {"the mask of scene 2", "scene 4"}
    assert len(caplog.messages) == 2
    with pytest.raises(UserError, match=r"more than 1 images \(data\.max_corrupt\) cannot be read"):
        list(train(source, max_corrupt=1))


def test_a_wrong_map_stops_the_run(photo):
    source = Source(6, _2=(photo, np.full((40, 60), 3, np.uint8)))
    with pytest.raises(UserError, match=r"the mask of scene 2 has the value 3 in row 0, column 0"):
        list(train(source, max_corrupt=5))


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match="batch_size is 7, but must lie between 1 and the 6 training examples"):
        train(Source(6), batch_size=7)
    with pytest.raises(UserError, match="cannot be shared equally by 3 processes"):
        train(Source(6), process_count=3)
    with pytest.raises(UserError, match=r"data\.threads is 0"):
        train(Source(6), threads=0)
    with pytest.raises(UserError, match=r"data\.threads is 0"):
        scenes(Source(6), range(6), 3, 0)


@pytest.mark.parametrize("threads", [1, 4])
def test_whole_scenes_come_in_the_order_asked_for(threads):
    source = Source(9)
    indices = [5, 0, 8, 5, 1, 2, 3]
    found = list(scenes(source, indices, 3, threads))
    assert [name for _, _, name in found] == [f"scene {index}" for index in indices]
    for index, (pixels, labels, _) in zip(indices, found, strict=True):
        np.testing.assert_array_equal(pixels, source.images[index])
        np.testing.assert_array_equal(labels, source.masks[index])
        assert labels.dtype == np.int32
    assert list(scenes(source, [], 3, threads)) == []
    wait_until(lambda: not readers())


def test_few_scenes_are_in_memory():
    source = Source(50)
    with scenes(source, range(50), 3, 2) as found:
        wait_until(lambda: source.reads == 3)
        time.sleep(0.1)
        assert source.reads == 3
        next(found)
        wait_until(lambda: source.reads == 4)


@pytest.mark.parametrize("stop", ["close", "drop"])
def test_stopping_ends_the_threads(stop):
    source = Source(50)
    found = scenes(source, range(50), 3, 2)
    next(found)
    if stop == "close":
        found.close()
        assert list(found) == []
        found.close()
    del found
    gc.collect()
    wait_until(lambda: not readers())
    assert source.reads <= 4


def test_what_is_wrong_with_a_scene_is_raised_when_it_is_due(photo):
    source = Source(6, _2=(photo, b"junk"), _3=(photo, np.zeros((2, 2), np.uint8)))
    for index, message in ((2, "the mask of scene 2 cannot be read: it is not a PNG"), (3, "scene 3 has 2 x 2 pixels")):
        found = scenes(source, [0, 1, index, 4], 3, 3)
        assert [next(found)[2], next(found)[2]] == ["scene 0", "scene 1"]
        with pytest.raises(UserError, match=message):
            next(found)
        assert list(found) == []
    wait_until(lambda: not readers())
