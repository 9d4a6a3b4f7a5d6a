"""Weights on Hugging Face's hub: `hf:OWNER/NAME`, with `@REVISION` and `:FILE` where they matter.

They are fetched by huggingface_hub (extra `hub`) into its cache, and are taken from there where the hub cannot be
reached, or HF_HUB_OFFLINE=1 says not to try.
"""

import json
import os
import re
from pathlib import Path

from lape_jax.errors import UserError

SCHEME = "hf:"
# What Hugging Face's libraries call the weights in a directory, the first that is there.
IN_DIRECTORY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
BESIDE = ("config.json", "preprocessor_config.json")  # what says which model it is
_PLACE = re.compile(r"(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^:]+))?(:(?P<file>[^:]+)(?P<key>:.+)?)?")


def local(path: str | os.PathLike) -> str:
    """`path`, or where that lies on this machine which it names on the hub, with the `:KEY` that it ends in.

    Without a FILE that is the directory of a repository, with its weights and what is said of them. Each call asks the
    hub for every one of them: whoever reads a place twice asks for it first, and passes on what this returns.

    Raises:
        UserError: the place is none, huggingface_hub is not installed, or the file is neither there nor in the cache.
    """
    text = os.fspath(path)
    if not text.startswith(SCHEME):
        return text
    place = _PLACE.fullmatch(text.removeprefix(SCHEME))
    if place is None:
        raise UserError(f"{text} is no place on the hub: it should be hf:OWNER/NAME, hf:OWNER/NAME@REVISION:FILE, ...")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError(f'{text} needs huggingface_hub: pip install "lape_jax[hub]"') from None
    repo, revision, file, key = place["repo"], place["revision"], place["file"], place["key"] or ""
    if file:
        found = _fetch(text, repo, revision, (file,))
        return str(found) + key
    found = _fetch(text, repo, revision, IN_DIRECTORY)
    if found.suffix == ".json":
        for part in sorted(set(json.loads(found.read_text())["weight_map"].values())):
            _fetch(text, repo, revision, (part,))
    for name in BESIDE:
        _fetch(text, repo, revision, (name,), required=False)
    return str(found.parent)


def _fetch(text: str, repo: str, revision: str | None, names: tuple[str, ...], required: bool = True) -> Path | None:
    """The first of the files `names` that the repository has, in the cache.

    Raises:
        UserError: there is none, and one is `required`.
    """
    from huggingface_hub import errors, hf_hub_download

    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except errors.LocalEntryNotFoundError as error:  # also one of those below
            reason = f"the hub cannot be reached, and it is not in the cache ({_line(error.__cause__ or error)})"
        except errors.EntryNotFoundError:
            reason = f"the repository has none of {', '.join(names)}"
        except Exception as error:  # whatever the network and the hub may say
            reason = _line(error)
            break
    if required:
        raise UserError(f"{text} cannot be had: {reason}")
    return None


def _line(error: BaseException) -> str:
    """What an error says in its first lines."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else f"{words[:157]}..."
