"""What a run leaves to read: config.json, metrics.jsonl, TensorBoard events, perhaps a page on Weights & Biases; and
what it says on the console."""

import hashlib
import io
import json
import math
import numbers
import shutil
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax import atomic
from lape_jax.config.reading import to_json
from lape_jax.errors import UserError

# What a progress line shows, if it is among the scalars: (name, how).
_SHOWN = (
    ("train/loss", "loss {:.4f}"),
    ("lr", "lr {:.2e}"),
    ("img_per_sec", "{:,.0f} img/s"),
    ("img_per_sec_per_device", "{:,.0f} img/s/device"),
    ("mfu", "MFU {:.1%}"),
    ("data_wait_frac", "data wait {:.1%}"),
)
_CLEAR = "\033[2K"  # ANSI: erase the line


class Writers:
    """Writes the scalars of a run to `workdir`, and its `console`. Only process 0 of a multi-host run writes.

    metrics.jsonl has one JSON object per line: "step" and the named scalars. Numbers that JSON does not have (NaN and
    the infinities) are null there; TensorBoard gets them as they are. Every line is flushed at once, so a killed run
    loses nothing but, at worst, the end of its last line. A run that resumes from a checkpoint drops the lines of later
    steps, which it writes again, and has TensorBoard hide them.

    Args:
        workdir: created if it does not exist.
        resume_step: the step of the checkpoint that the run starts from; 0 for a fresh start.
        console: where progress is shown, by default on stdout.
        project: on Weights & Biases, where scalars go, too; "" for none. A run that resumes goes on with its page.

    Raises:
        UserError: `workdir` cannot be created or written, or there is a project and wandb is not installed.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0, console: "Console | None" = None, project: str = ""):
        self._primary = jax.process_index() == 0
        self.console = console or Console(enabled=self._primary)
        self._workdir = Path(workdir)
        if not self._primary:
            return
        self._page = _page(project, self._workdir) if project else None  # says at once if wandb is missing
        # Here and not above: other processes write no events. (It imports torch where torch is installed.)
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            metrics = self._workdir / "metrics.jsonl"
            _drop_after(metrics, resume_step)
            self._metrics = metrics.open("a")
            # The writer names its file by the second: what resumes within one would overwrite the file before.
            self._events = EventsWriter(str(self._workdir / "events"), f".{time.time_ns()}")
        except OSError as error:
            raise UserError(f"workdir {str(workdir)!r} cannot be written: {error.strerror}") from None
        if resume_step:
            self._events.write_event(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))
            self._events.flush()

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes `scalars` (numbers or arrays of one element, by name) of `step` to metrics.jsonl and TensorBoard."""
        if not self._primary:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = {name: _number(value) for name, value in scalars.items()}
        legal = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._metrics.write(json.dumps({"step": int(step), **legal}, allow_nan=False) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise UserError(f"{self._metrics.name} cannot be written: {error.strerror}") from None
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=summary))
        self._events.flush()
        if self._page is not None:
            self._page.log(values, step=int(step))

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Shows PNG files, by name, in TensorBoard."""
        if not self._primary:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = []
        for name, png in images.items():
            width, height = struct.unpack(">II", png[16:24])  # where every PNG has them
            image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
            values.append(Summary.Value(tag=name, image=image))
        self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=Summary(value=values)))
        self._events.flush()

    def write_config(self, config: ConfigDict) -> None:
        """Writes the resolved `config` to config.json, all of it or nothing, without `distributed`.

        On how many processes a run is started belongs to the start and not to the run.
        """
        if self._primary:
            config = ConfigDict({name: value for name, value in config.items() if name != "distributed"})
            atomic.write(self._workdir / "config.json", to_json(config))

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        self.console.close()
        if self._primary:
            self._metrics.close()
            self._events.close()
            if self._page is not None:
                self._page.finish()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Console:
    """Progress as one line that is rewritten on a terminal, and as plain lines anywhere else.

    Args:
        stream: by default stdout.
        enabled: False prints nothing (the other processes of a multi-host run).
    """

    def __init__(self, stream: io.TextIOBase | None = None, enabled: bool = True):
        self._stream = stream or sys.stdout
        self._enabled = enabled
        self._rewrites = self._stream.isatty()
        self._open = False  # whether a rewritten line is waiting for its end

    def progress(self, step: int, total_steps: int, scalars: Mapping[str, Any], eta: float | None = None) -> None:
        """Shows how far the run is: step, loss, lr, speed, MFU, waiting for data, and `eta` in seconds."""
        shown = [text.format(_number(scalars[name])) for name, text in _SHOWN if name in scalars]
        shown += [f"ETA {clock_time(eta)}"] if eta is not None else []
        text = "  ".join([f"step {step}/{total_steps} ({step / total_steps:.0%})", *shown])
        if not self._rewrites:
            return self.line(text)
        if self._enabled:
            # The cursor goes back to the start of the line, so that a warning that comes meanwhile starts there.
            self._print(f"{_CLEAR}{text[: shutil.get_terminal_size().columns - 1]}\r")
            self._open = True

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(f"{_CLEAR if self._rewrites else ''}{text}\n")
        self._open = False

    def summary(self, text: str) -> None:
        """Prints the last line of a run, below its progress."""
        self.close()
        self.line(text)

    def close(self) -> None:
        """Leaves the progress line standing."""
        if self._open:
            self._print("\n")
            self._open = False

    def _print(self, text: str) -> None:
        if not self._enabled:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # nobody reads any more (`| head`): no reason to stop training
            self._enabled = False


def _page(project: str, workdir: Path) -> Any:
    """The run's page on Weights & Biases, which is called after the workdir."""
    try:
        import wandb
    except ImportError:
        raise UserError(f'config.wandb={project} needs wandb: pip install "lape_jax[wandb]"') from None
    identity = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=workdir.name, id=identity, resume="allow", dir=str(workdir))


def clock_time(seconds: float) -> str:
    """`seconds` as m:ss or h:mm:ss.

    >>> clock_time(75.4), clock_time(3600 * 27 + 61)
    ('1:15', '27:01:01')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _number(value: Any) -> int | float:
    """A Python number for `value`: exact, also for float32 and bfloat16."""
    value = np.asarray(value).item()
    return value if isinstance(value, numbers.Integral) else float(value)


def _drop_after(metrics: Path, step: int) -> None:
    """Removes the lines of steps after `step`, and a torn last line, from `metrics`: in one go, or not at all."""
    if not metrics.exists():
        return
    lines = metrics.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_upto(line, step)]
    if len(kept) < len(lines):
        atomic.write(metrics, "".join(kept))


def _is_upto(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
