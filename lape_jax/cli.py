"""What the command lines share: their options, config files with overrides, quiet logs, and errors in one line.

    COMMAND --config=FILE.py[:arg,arg=value] --workdir=DIR [--config.key=value ...] [--option=value ...]

FILE.py is a Python file with `get_config(arg) -> ConfigDict` (see lape_jax/config/schema.py), or the name of one that
is shipped, as `deit_ti`, if there is no such file. Exit codes: 0 done,
1 a bug (with its traceback), 2 a mistake in what was given (one line on stderr), 130 interrupted.
"""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging as absl_logging
from ml_collections import ConfigDict

from lape_jax.config import reading, rules
from lape_jax.config.reading import unknown_key
from lape_jax.config.schema import HOW, KEPT
from lape_jax.errors import UserError, nearest
from lape_jax.tasks import config as configs

_log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).parent
# The repository's configs, which an installed package has inside.
SHIPPED = next((place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()), _PACKAGE)
_VALUES = {"config": "FILE", "workdir": "DIR"}
Result = TypeVar("Result")
Main = Callable[[ConfigDict, argparse.Namespace], None]
Options = Callable[[argparse.ArgumentParser], None]


def run(
    main: Main,
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    required: Sequence[str] = (),
    options: Options | None = None,
    assumed: Mapping[str, str] | None = None,
) -> int:
    """Calls `main(config, args)` with what the command line says, and returns the exit code.

        if __name__ == "__main__":
            sys.exit(cli.run(main, description=__doc__, required=("config", "workdir")))

    `config` is complete and valid: that of --config or, without it, of DIR/config.json, with the overrides put in.
    `args` holds the value of every option by its name, and in `overrides` {key: text} of the config's keys that were
    given.

    Args:
        main: the command.
        argv: the arguments, by default those of the process.
        description: what --help says about the command.
        required: the options that must be given.
        options: adds what the command takes beside --config and --workdir to an `argparse.ArgumentParser`.
        assumed: keys of the config and the texts that the command sets them to, unless the command line says otherwise.
            A run from before there was such a key goes on with what it had.
    """

    def command() -> None:
        args, overrides = parse(sys.argv[1:] if argv is None else argv, description, required, options)
        args.overrides = dict(overrides)
        main(load_config(args.config, args.workdir, overrides, assumed or {}), args)

    return exit_code(command)


def exit_code(command: Callable[[], None]) -> int:
    """Calls `command` and returns the exit code; a user's mistake becomes one line on stderr."""
    quiet_logs()
    print_any_name()
    try:
        command()
    except (UserError, KeyboardInterrupt, MemoryError, jax.errors.JaxRuntimeError) as error:
        return report(error)
    return 0


def report(error: BaseException) -> int:
    """Says on stderr what ended a command, and returns its exit code."""
    if isinstance(error, UserError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        first_line = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
        print(
            f"error: the device's memory does not suffice ({first_line[:200]}): use a smaller --config.batch_size, "
            f"more micro-batches (--config.optimizer.accumulate), or --config.model.remat=attention or full",
            file=sys.stderr,
        )
        return 2
    if isinstance(error, MemoryError):
        print(
            f"error: the memory of the host (not of the device) does not suffice ({str(error)[:200]}): use a smaller "
            f"--config.batch_size or --config.eval_batch_size, or --config.data.resident=false",
            file=sys.stderr,
        )
        return 2
    traceback.print_exception(error)
    return 1


def quiet_logs() -> None:
    """Only warnings reach stderr, one line each, whichever library they come from."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.ERROR, "error")
    line = "%(levelname)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=line, stream=sys.stderr)
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:  # of a library that logged while it was imported, as Orbax does
            handler.setFormatter(logging.Formatter(line))


def print_any_name() -> None:
    """Lets names of files that are no text be printed: stdout shows what it cannot as escapes; stderr does anyway."""
    if hasattr(sys.stdout, "reconfigure"):  # which what stands in for it in a notebook need not have
        sys.stdout.reconfigure(errors="backslashreplace")


def parse(
    argv: Sequence[str], description: str, required: Sequence[str] = (), options: Options | None = None
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Splits the command line into the options by name and the (key, text) overrides of the config, in order."""
    overrides, rest = split_overrides(argv)
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m MODULE`
    parser = Parser(
        prog=f"python -m {module.name}" if module else None,
        description=description,
        epilog="Any key of the config can be set: --config.optimizer.lr=3e-4 --config.total_epochs=100",
    )
    path = {"default": "", "type": os.path.expanduser}  # the shell does it at the start of a word only
    parser.add_argument("--config", metavar="FILE[:ARG]", help="config file or name of one, and its argument", **path)
    parser.add_argument("--workdir", metavar="DIR", help="directory of the run: checkpoints, metrics, ...", **path)
    if options is not None:
        options(parser)
    args, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        raise UserError(f"option {nearest(unknown[0].partition('=')[0], parser.options)}")
    for name in required:
        if not getattr(args, name):
            raise UserError(f"--{name}={_VALUES.get(name, '...')} is missing")
    return args, overrides


def split_settings(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of all `--model.KEY=VALUE` by key, and the other arguments."""
    settings, rest = {}, []
    for arg in argv:
        match = re.fullmatch(r"--model\.([^=]+)=(.*)", arg, re.DOTALL)
        if match:
            settings[match[1]] = reading.literal(match[2], f"--model.{match[1]}")
        else:
            rest.append(arg)
    return settings, rest


def load_config(
    file: str, workdir: str, overrides: Sequence[tuple[str, str]] = (), assumed: Mapping[str, str] | None = None
) -> ConfigDict:
    """The valid config of `--config=file`, or else of the run in `workdir`, with the overrides put in, see `run`."""
    begun = reading.given(Path(workdir) / "config.json") if workdir else None
    if file:
        config = configs.resolve(read_config_file(file))
        _keep(config, begun, workdir, dict(overrides))
    elif workdir:
        config = configs.from_json(Path(workdir) / "config.json")
    else:
        raise UserError("--config=FILE is missing, and so is a --workdir=DIR to take the config from")
    for key, text in (assumed or {}).items():
        if begun is None or key in begun:
            configs.override(config, [(key, text)])
    configs.override(config, overrides)
    configs.validate(config)
    return config


def _keep(config: ConfigDict, begun: Mapping | None, workdir: str, overrides: Mapping[str, str]) -> None:
    """Puts into `config` what the run that was begun in `workdir` keeps, and says so where the config file differs."""
    for key, earlier in KEPT.items() if begun is not None else ():
        had = begun.get(key, earlier)
        if key not in overrides and rules.get(config, key) != had:
            _log.warning("config.%s stays %r, as the run in %s was begun (--config.%s=...)", key, had, workdir, key)
            configs.override(config, [(key, had)])
    for key in HOW if begun is not None else ():
        if key not in overrides and rules.get(config, key) == "auto":
            group, _, leaf = key.partition(".")
            config[group][leaf] = rules.get(configs.from_json(Path(workdir) / "config.json"), key)


def read_config_file(file: str) -> ConfigDict:
    """What `get_config(ARG)` of the Python file `PATH` returns, for `file` = "PATH" or "PATH:ARG"; see `find_config`.

    Raises UserError if there is no such file, or naming the line of it that raised.
    """
    return call_config_file(file, "get_config", ConfigDict)


def call_config_file(file: str, function: str, kind: type[Result]) -> Result:
    """What `function(ARG)` of the Python file `PATH` returns, for `file` = "PATH" or "PATH:ARG".

    Raises UserError if there is no such file, it has no such function that returns a `kind`, or naming the line of it
    that raised.
    """
    path, _, arg = file.partition(":")
    path = find_config(path)
    try:
        source = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        siblings = sorted(str(sibling) for sibling in Path(path).parent.glob("*.py"))
        siblings += sorted(shipped.stem for shipped in SHIPPED.glob("*.py")) if "/" not in path else []
        near = f": {nearest(path, siblings)}" if siblings else ""
        raise UserError(
            f"config file {path!r} cannot be read ({getattr(error, 'strerror', None) or error}){near}"
        ) from None
    try:
        # Executed here and not imported: a config is data, no module that others may import, and leaves no .pyc behind.
        module = {"__name__": Path(path).stem, "__file__": path}
        exec(compile(source, path, "exec"), module)
        if function not in module:
            raise UserError(f"config file {path!r} has no {function}(arg) function")
        result = module[function](arg)
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise UserError(f"config file {error.filename!r}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise UserError(_explain(error, path)) from error
    if not isinstance(result, kind):
        raise UserError(f"{function} of {path!r} returned {type(result).__name__}: it must return a {kind.__name__}")
    return result


def find_config(path: str) -> str:
    """`path`, or the config of that name which is shipped, if there is no such file: "deit_ti", "deit_ti.py"."""
    shipped = SHIPPED / f"{path.removesuffix('.py')}.py"
    return str(shipped) if os.path.basename(path) == path and not os.path.exists(path) and shipped.is_file() else path


def _explain(error: Exception, path: str) -> str:
    """One line for an exception that a config file raised: where, and what was wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == path), "?")
    text = str(error)
    # ml_collections says only 'optimzer', or lists the whole config after it.
    key = re.match(r"\W*(?:Key \W)?(\w+)", text)
    if key and isinstance(error, AttributeError | KeyError) and "ml_collections" in frames[-1].filename:
        text = str(unknown_key(key[1], configs.base()))
    else:
        text = f"{type(error).__name__}: {text}"
    return f"config file {path!r}, line {line}: {text}"


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--config.key=text`, `--config.key text`, `--config.flag` and `--noconfig.flag` out of `argv`."""
    overrides, rest, waiting = [], [], list(argv)
    while waiting:
        arg = waiting.pop(0)
        match = re.fullmatch(r"--(no)?config\.([^=]*)(?:=(.*))?", arg, re.DOTALL)
        if not match:
            rest.append(arg)
            continue
        no, key, text = match.groups()
        if no and text is not None:
            raise UserError(f"{arg}: --noconfig.{key} takes no value")
        if no or text is None:
            bare = no or not waiting or waiting[0].startswith("--")
            text = str(not no).lower() if bare else waiting.pop(0)
        overrides.append((key, text))
    return overrides, rest


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit, and takes no option that is only begun.

    Attributes:
        options: names of all that were added.
    """

    def __init__(self, **settings: Any):
        self.options: list[str] = []
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        self.options += [name for name in names if name.startswith("--") and name != "--help"]
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> None:
        raise UserError(re.sub(r"^argument (\S+): is ", r"\1 is ", message))  # as `lape_jax.config.options` says it
