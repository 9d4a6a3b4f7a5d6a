"""What directories hold, for the sources that are made of files."""

import os

from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError

# What other programs leave beside files, in small letters: thumbnails, waste and copies of Synology, QNAP, macOS and
# Windows, and what file systems keep. It is looked at as little as hidden files.
CLUTTER = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "~snapshot", "__macosx", "icon\r"}
    | {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"}
    | {"network trash folder", "lost+found", "__pycache__"}
)


def list_files(directory: str, suffixes: tuple[str, ...], above: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """All (files with one of these lower-case suffixes, other files) below `directory`: sorted paths relative to it.

    Letters of either case match. Hidden files and directories, and CLUTTER, are left out; symbolic links are followed.

    Raises:
      UserError: a directory cannot be listed, or links lead around in a circle.
    """
    wanted, others = [], []
    for entry in entries(directory):
        if entry.is_dir():
            parents = (*above, os.path.realpath(directory))
            if entry.is_symlink() and os.path.realpath(entry.path) in parents:
                raise UserError(f"{entry.path} is a symbolic link to a directory that it lies in")
            for target, paths in zip((wanted, others), list_files(entry.path, suffixes, parents), strict=True):
                target += [f"{entry.name}/{path}" for path in paths]
        else:
            (wanted if entry.name.lower().endswith(suffixes) else others).append(entry.name)
    return sorted(wanted), sorted(others)


def entries(directory: str) -> list[os.DirEntry[str]]:
    """What is neither hidden in a directory nor CLUTTER.

    Raises:
      UserError: it cannot be listed.
    """
    try:
        with os.scandir(directory) as found:
            return [entry for entry in found if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER]
    except OSError as error:
        raise UserError(f"cannot list {directory}: {error.strerror}") from error


def check_directory(root: str, *parts: str) -> str:
    """root/part/part..., all of them directories.

    Raises:
      UserError: one is missing; says what is there in its place.
    """
    if not os.path.isdir(root):
        raise UserError(f"data.path {root!r} is not a directory")
    for part in parts:
        path = os.path.join(root, part)
        if not os.path.isdir(path):
            raise UserError(f"{root} has no directory {part!r}; it holds {some(names(root))}")
        root = path
    return root


def names(directory: str) -> list[str]:
    """The names of `entries`."""
    return [entry.name for entry in entries(directory)]


def some(found: list[str]) -> str:
    """Up to eight of the names, for a message.

    >>> some(["b", "a"])
    'a, b'
    """
    shown = ", ".join(sorted(found)[:8])
    return f"{shown}, ... ({len(found)} in all)" if len(found) > 8 else shown or "nothing"


def read(path: str) -> bytes:
    """The file's content.

    Raises:
      CorruptImage: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CorruptImage(path, error.strerror or str(error)) from error
