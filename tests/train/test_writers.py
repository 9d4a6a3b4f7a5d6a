import io
import json
import math
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lape_jax.errors import UserError
from lape_jax.tasks.config import base, from_json
from lape_jax.train.writers import Console, Writers, clock_time


class Terminal(io.StringIO):
    def isatty(self):
        return True


def quiet(workdir, resume_step=0):
    return Writers(workdir, resume_step, Console(io.StringIO()))


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """All events of all event files, oldest first."""
    found = []
    for path in workdir.glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return sorted(found, key=lambda event: event.wall_time)


def test_scalars_are_exact_in_both_files_as_soon_as_written(tmp_path):
    with quiet(tmp_path / "new" / "run") as writers:
        writers.write(3, {"train/loss": jnp.float32(0.1), "lr": np.float64(1e-3), "count": np.int32(7), "one": [2.5]})
        assert metrics(tmp_path / "new" / "run") == [
            {"step": 3, "train/loss": float(np.float32(0.1)), "lr": 1e-3, "count": 7, "one": 2.5}
        ]
        _, event = events(tmp_path / "new" / "run")
        assert event.step == 3
        values = {value.tag: value.simple_value for value in event.summary.value}
        assert values == {"train/loss": np.float32(0.1), "lr": np.float32(1e-3), "count": 7, "one": 2.5}


def test_numbers_that_json_lacks_are_null(tmp_path):
    with quiet(tmp_path) as writers:
        writers.write(1, {"a": float("nan"), "b": jnp.inf, "c": np.float32(-np.inf), "d": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "a": null, "b": null, "c": null, "d": 1}\n'
    values = {value.tag: value.simple_value for value in events(tmp_path)[-1].summary.value}
    assert math.isnan(values["a"])
    assert (values["b"], values["c"]) == (math.inf, -math.inf)


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    with quiet(tmp_path) as writers:
        for step in (10, 20, 20, 30):
            writers.write(step, {"train/loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')
    with quiet(tmp_path, resume_step=20) as writers:
        assert [line["step"] for line in metrics(tmp_path)] == [10, 20, 20]
        writers.write(30, {"train/loss": -1.0})
    assert metrics(tmp_path)[-1] == {"step": 30, "train/loss": -1.0}
    assert len(metrics(tmp_path)) == 4
    (start,) = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert (start.step, start.session_log.status) == (21, SessionLog.START)
    assert [event.step for event in events(tmp_path) if event.HasField("summary")] == [10, 20, 20, 30, 30]


@pytest.mark.parametrize("torn", ["", '{"step": 2', '{"step": 2}', '{"step": 10, "a": 1}\n'])
def test_fresh_start_keeps_nothing_of_an_earlier_try(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n' + torn)
    quiet(tmp_path).close()
    assert metrics(tmp_path) == []


def test_nothing_is_rewritten_when_nothing_is_dropped(tmp_path):
    with quiet(tmp_path) as writers:
        writers.write(1, {"a": 1})
    before = (tmp_path / "metrics.jsonl").stat()
    quiet(tmp_path, resume_step=1).close()
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_config(tmp_path):
    config = base()
    config.model.image_size = (28, 20)
    with quiet(tmp_path) as writers:
        writers.write_config(config)
    assert from_json(tmp_path / "config.json").to_dict() == config.to_dict()
    assert "distributed" not in json.loads((tmp_path / "config.json").read_text())  # that is another one's next time
    assert sorted(path.name.partition(".out")[0] for path in tmp_path.iterdir()) == [
        "config.json",
        "events",
        "metrics.jsonl",
    ]


def test_only_process_0_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Writers(tmp_path / "run") as writers:
        writers.write(1, {"a": 1})
        writers.write_config(base())
        writers.console.summary("done")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir '.*file' cannot be written: File exists"):
        quiet(tmp_path / "file")
    with pytest.raises(UserError, match=r"workdir '.*file/run' cannot be written: Not a directory"):
        quiet(tmp_path / "file" / "run")


SCALARS = {
    "train/loss": jnp.float32(0.25),
    "lr": 1e-3,
    "img_per_sec": 12345.6,
    "mfu": 0.423,
    "data_wait_frac": 0.001,
    "other": 1,
}
LINE = "step 50/200 (25%)  loss 0.2500  lr 1.00e-03  12,346 img/s  MFU 42.3%  data wait 0.1%  ETA 1:15"


def test_plain_lines():
    stream = io.StringIO()
    console = Console(stream)
    console.progress(50, 200, SCALARS, eta=75.4)
    console.line("val/top1 0.9")
    console.progress(200, 200, {})
    console.summary("done")
    assert stream.getvalue() == f"{LINE}\nval/top1 0.9\nstep 200/200 (100%)\ndone\n"


def test_terminal_line_is_rewritten_and_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    console = Console(stream)
    console.progress(50, 200, SCALARS, eta=75.4)
    console.line("val/top1 0.9")
    console.progress(200, 200, {})
    console.summary("done")
    clear = "\033[2K"
    assert stream.getvalue() == (
        f"{clear}{LINE[:39]}\r{clear}val/top1 0.9\n{clear}step 200/200 (100%)\r\n{clear}done\n"
    )


def test_clock_time():
    assert [clock_time(s) for s in (0.4, 59.6, 75.4, 97261.0)] == ["0:00", "1:00", "1:15", "27:01:01"]


def test_images(tmp_path):
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 30, 20) + b"and so on"
    with quiet(tmp_path) as writers:
        writers.write_images(7, {"curves": png})
    (event,) = [event for event in events(tmp_path) if event.summary.value]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (7, "curves")
    assert (value.image.width, value.image.height, value.image.encoded_image_string) == (30, 20, png)


def test_weights_and_biases(tmp_path, monkeypatch):
    said = []
    page = types.SimpleNamespace(
        log=lambda values, step: said.append((step, values)), finish=lambda: said.append("finished")
    )
    begun = []
    wandb = types.SimpleNamespace(init=lambda **options: begun.append(options) or page)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 2):
        with Writers(tmp_path / "run", step, Console(io.StringIO()), project="vits") as writers:
            writers.write(step + 2, {"train/loss": jnp.float32(0.5)})
    assert said == [(2, {"train/loss": 0.5}), "finished", (4, {"train/loss": 0.5}), "finished"]
    assert begun[0] == begun[1]  # so that the page goes on
    assert begun[0].items() >= {"project": "vits", "name": "run", "resume": "allow"}.items()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'config.wandb=vits needs wandb: pip install "lape_jax\[wandb\]"'):
        Writers(tmp_path / "other", project="vits")
