import contextlib
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def photos(tmp_path, encode):
    """photos(train=5, val=2) -> a directory with so many 12x16 images per split, alternately of classes a and b."""

    def make(form: str = "JPEG", **splits: int) -> Path:
        rng = np.random.default_rng(0)
        for split, count in splits.items():
            for number in range(count):
                path = tmp_path / "photos" / split / "ab"[number % 2] / f"{number:02d}.{form.lower()}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(rng.integers(0, 256, (12, 16, 3), np.uint8), form))
        return tmp_path / "photos"

    return make


@pytest.fixture
def serve():
    """serve(handler) -> the address of a server on this machine, until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(handler) -> str:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start
