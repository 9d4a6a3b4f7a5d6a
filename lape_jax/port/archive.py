"""Opening files that may be damaged, or made to do harm: whatever is wrong with one ends in a single UserError."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lape_jax.errors import UserError

# Weights hardly compress. An archive that claims to unpack to far more than this is a bomb, not a checkpoint.
MAX_EXPANSION = 100
SMALL = 16 * 2**20  # bytes that anything may unpack to: a small file of zeros is harmless


class RefusedError(Exception):
    """What a file asks for cannot or must not be done; `reading` turns it into a UserError that names the file."""


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns everything that goes wrong inside the block into one UserError about `path`, which should be a `kind`."""
    try:
        yield
    except RefusedError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # A hostile file can reach about any exception of the parsers underneath.
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or not a {kind} file ({reason})") from error


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive at `path`, after a look at the sizes that it claims (reading never yields more than those).

    Raises:
        RefusedError: it claims to unpack to absurdly much.
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        stored = path.stat().st_size
        if claimed > SMALL + MAX_EXPANSION * stored:
            raise RefusedError(f"its {stored} bytes claim to unpack to {claimed}, which no file of weights would")
        yield archive
