import gc
import itertools
import logging
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lape_jax.data import decode, order
from lape_jax.data.batches import Batches
from lape_jax.data.example import Example
from lape_jax.data.pipeline import Crop, eval_batches, train_batches
from lape_jax.errors import UserError
from tests.reading import reading

FIELDS = ("image", "label", "mask")


def train(source, **changes):
    options = {
        "seed": 3,
        "batch_size": 4,
        "start_step": 0,
        "total_steps": 7,
        "size": 6,
        "channels": 3,
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "threads": 4,
        "max_corrupt": 0,
    }
    asked, crop = reading(**{**options, **changes})
    return train_batches(source, asked, Crop(**crop))


def evaluate(source, **changes):
    return eval_batches(
        source, **{"batch_size": 4, "size": 6, "channels": 3, "crop_ratio": 1.0, "threads": 4, **changes}
    )


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(batch[field], other[field])


def threads_of_grain():
    return [thread for thread in threading.enumerate() if "grain" in thread.name]


def wait_until(condition):
    """Waits up to 20 seconds for what should happen at once, also on a busy machine."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_batches_hold_what_the_order_says(numbered):
    source = numbered(30)
    batches = list(train(source, batch_size=12))  # more than a thread makes at a time
    assert len(batches) == 7
    for step, batch in enumerate(batches):
        indices = order.batch_indices(3, step, 12, 30)
        np.testing.assert_array_equal(batch["label"], indices)
        assert batch["mask"].tolist() == [1] * 12
        for position, index in enumerate(indices):
            rng = order.augment_rng(3, step, position)
            crop = decode.train_crop(source.images[index], 6, rng, (0.08, 1.0), (3 / 4, 4 / 3))
            np.testing.assert_array_equal(batch["image"][position], crop)
    assert {field: (array.shape, str(array.dtype)) for field, array in batches[0].items()} == {
        "image": ((12, 6, 6, 3), "uint8"),
        "label": ((12,), "int32"),
        "mask": ((12,), "float32"),
    }


@pytest.mark.parametrize("hosts", [1, 2])
def test_repeats_are_cropped_differently(numbered, hosts):
    source = numbered(60)
    options = {"repeats": 3, "repeat_ranks": 4, "batch_size": 12, "total_steps": 9}
    shares = [list(train(source, process_index=host, process_count=hosts, **options)) for host in range(hosts)]
    for step, batches in enumerate(zip(*shares, strict=True)):
        label, image = (np.concatenate([batch[field] for batch in batches]) for field in ("label", "image"))
        np.testing.assert_array_equal(label, order.batch_indices(3, step, 12, 60, 3, 4))
        assert len(set(label)) == 4  # 12 in a row, from a multiple of 3 on
        assert len({pixels.tobytes() for pixels in image}) > 8
    assert_same(train(source, start_step=4, **options), list(train(source, **options))[4:])


def test_jpegs_take_the_fast_way(encode, encoded_source, photo, monkeypatch):
    def whole(*_):
        raise AssertionError("decoded whole")

    monkeypatch.setattr(decode, "decode", whole)
    files = [encode(photo, "JPEG") for _ in range(6)]
    for batch in train(encoded_source(files), batch_size=3, interpolation="random"):
        assert batch["mask"].all()
        assert len({pixels.tobytes() for pixels in batch["image"]}) == 3


@pytest.mark.parametrize("repeats", [1, 3])
def test_threads_do_not_all_shuffle_the_same_epoch(numbered, repeats, monkeypatch):
    real = order._philox
    monkeypatch.setattr(order, "_philox", lambda *place: time.sleep(0.02) or real(*place))
    order.epoch_permutation.cache_clear()
    list(train(numbered(128), batch_size=64, total_steps=4, threads=8, repeats=repeats))
    assert order.epoch_permutation.cache_info().misses == 2  # epochs


def test_crops_change_with_the_step(numbered):
    batches = list(train(numbered(1), batch_size=1))
    assert len({batch["image"].tobytes() for batch in batches}) > 3


@pytest.mark.parametrize("threads", [1, 9])
def test_threads_do_not_matter(numbered, threads):
    source = numbered(30)
    assert_same(train(source, batch_size=20, threads=threads, prefetch=threads), train(source, batch_size=20))


@pytest.mark.parametrize("start", [1, 4, 6])
def test_resuming_gives_the_rest_of_the_run(numbered, start):
    source = numbered(10)
    assert_same(train(source, start_step=start), list(train(source))[start:])


def test_a_run_that_is_over_has_no_batches(numbered):
    assert list(train(numbered(10), start_step=7)) == []


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("make", [train, evaluate])
def test_hosts_together_make_the_batches_of_one(numbered, make, hosts):
    source = numbered(37)
    shares = [list(make(source, batch_size=24, process_index=host, process_count=hosts)) for host in range(hosts)]
    whole = [
        {field: np.concatenate([batch[field] for batch in batches]) for field in FIELDS}
        for batches in zip(*shares, strict=True)
    ]
    assert_same(whole, make(source, batch_size=24))


class CountingSource:
    """Endless grey images; counts the reads, and can hold them up or fail."""

    classes = ("grey",)

    def __init__(self, size=1000):
        self.size, self.reads, self.gate, self.error = size, 0, threading.Event(), None
        self.gate.set()
        self.lock = threading.Lock()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        with self.lock:
            self.reads += 1
        self.gate.wait()
        if self.error is not None:
            raise self.error
        return Example(np.zeros((8, 8, 3), np.uint8), 0, str(index))


def test_a_late_start_reads_nothing_of_what_came_before():
    source = CountingSource()
    with train(source, start_step=10**9, total_steps=2 * 10**9) as batches:
        next(batches)
        assert source.reads < 100


def test_reading_runs_ahead_of_the_consumer_but_not_for_ever():
    source = CountingSource()
    with train(source, total_steps=10**6) as batches:
        wait_until(lambda: source.reads >= 4)  # before anything is asked for
        next(batches)
        seen = source.reads
        wait_until(lambda: source.reads >= max(8, seen))  # while the first batch is being used
        time.sleep(0.2)
        # One batch used, two ready, up to two in the making, and two tasks (a batch each) for each of four threads.
        assert source.reads <= 4 * (1 + 2 + 2 + 8)


def test_all_threads_read_at_the_same_time():
    threads = 4
    barrier, reads = threading.Barrier(threads), itertools.count()

    class Met(CountingSource):
        def __getitem__(self, index):
            if next(reads) < threads:
                barrier.wait(60)  # which raises unless as many reads have begun by then
            return super().__getitem__(index)

    # A batch is one task of four examples, so that each of the first reads is another thread's.
    with train(Met(), batch_size=4, total_steps=11, threads=threads) as batches:
        assert len(list(batches)) == 11
    assert not barrier.broken


def test_evaluation_covers_every_example_once_in_order(numbered):
    source = numbered(10)
    batches = list(evaluate(source, size=12))
    assert [batch["mask"].tolist() for batch in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images[:10], source.images[:, :, 2:14])
    assert not images[10:].any()


def test_a_corrupt_image_is_masked_named_and_counted_once(encode, photo, encoded_source, caplog):
    files = [encode(photo) for _ in range(6)]
    files[2] = files[2][:100]
    files[4] = b""
    source = encoded_source(files)
    with caplog.at_level(logging.WARNING):
        batches = train(source, batch_size=3, total_steps=6, max_corrupt=2)
        for step, batch in enumerate(batches):
            bad = np.isin(order.batch_indices(3, step, 3, 6), [2, 4])
            np.testing.assert_array_equal(batch["mask"], 1 - bad)
            assert not batch["image"][bad].any()
            assert not batch["label"][bad].any()
            assert batch["image"][~bad].any()
    assert {name: reason[:10] for name, reason in sorted(batches.corrupt.items())} == {
        "image 2": "image file",
        "image 4": "it is empt",
    }
    assert source.reads == [3] * 6
    assert len(caplog.messages) == 2
    assert "image 4 cannot be read: it is empty (0 bytes)" in caplog.text


def test_too_many_corrupt_images_stop_the_run(encode, photo, encoded_source):
    source = encoded_source([encode(photo), b"", b"junk", encode(photo)])
    with pytest.raises(UserError, match=r"more than 1 images .*image \d \(it is .*\); image \d \(it is ") as caught:
        list(train(source, max_corrupt=1))
    assert "image 1" in str(caught.value)
    assert "image 2" in str(caught.value)
    with pytest.raises(UserError, match=r"image [12] cannot be read: it is"):
        list(train(source))


def test_a_corrupt_image_stops_evaluation(encode, photo, encoded_source):
    batches = evaluate(encoded_source([encode(photo)] * 5 + [b""]))
    assert next(batches)["mask"].all()
    with pytest.raises(UserError, match=r"image 5 cannot be read: it is empty"):
        next(batches)


@pytest.mark.parametrize("error", [UserError("no labels"), ZeroDivisionError("a bug")])
def test_errors_in_threads_reach_the_consumer_unchanged(error):
    source = CountingSource()
    source.error = error
    batches = train(source)
    with pytest.raises(type(error), match=f"^{error}$"):
        next(batches)
    assert list(batches) == []
    wait_until(lambda: not threads_of_grain())


def test_closing_stops_the_threads_at_once():
    source = CountingSource(10**6)
    with train(source, batch_size=10**5) as batches:  # a batch that nobody wants to wait for
        wait_until(lambda: source.reads > 0)
    wait_until(lambda: not threads_of_grain())
    assert source.reads < 10**5
    assert list(batches) == []
    batches.close()


def test_dropping_stops_the_threads():
    batches = train(CountingSource(), total_steps=10**6)
    next(batches)
    del batches
    gc.collect()
    wait_until(lambda: not threads_of_grain())


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
import numpy as np
from lape_jax.data.batches import Reading
from lape_jax.data.pipeline import Crop, train_batches
from lape_jax.data.example import Example
from lape_jax.data.order import Order
class Slow:
    classes = ()
    def __len__(self): return 1000
    def __getitem__(self, index):
        time.sleep(float(sys.argv[1]))
        return Example(np.zeros((8, 8, 3), np.uint8), 0, "")
batches = train_batches(Slow(), Reading(Order(0, 64), range(1000)), Crop(8, 3, (0.1, 1.0), (0.5, 2.0)))
print("ready", flush=True)
next(batches)
"""


def test_ctrl_c_ends_a_program_that_waits_for_data():
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "1"]  # eight seconds to the first batch
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        time.sleep(0.3)
        program.send_signal(signal.SIGINT)
        errors = program.communicate(timeout=20)[1]
    assert program.returncode == -signal.SIGINT, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in errors


@pytest.mark.slow
def test_a_program_that_forgets_to_close_still_ends():
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "0.002"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_settings_are_named(numbered):
    source = numbered(10)
    with pytest.raises(UserError, match="batch_size is 11, but must lie between 1 and the 10 training examples"):
        train(source, batch_size=11)
    with pytest.raises(UserError, match="4 examples cannot be shared equally by 3 processes"):
        train(source, process_count=3)
    with pytest.raises(UserError, match=r"data\.threads is 0"):
        train(source, threads=0)
    with pytest.raises(UserError, match=r"data\.interpolation: .*bicubic"):
        train(source, interpolation="cubic")
    with pytest.raises(UserError, match=r"multiple of data\.repeat_ranks"):
        train(source, repeats=3, batch_size=6)
    with pytest.raises(UserError, match="no examples to evaluate"):
        evaluate(numbered(0))
    assert isinstance(evaluate(source), Batches)
