"""Errors that are meant for people: one sentence that says what was wrong and what would be right."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us (a name, a shape, a file, a setting), not a bug of ours.

    Library functions raise it; the commands print its message as one line and exit with 2.
    """


def nearest(word: object, choices: Iterable[object]) -> str:
    """Says that `word` is none of `choices`, and which of them it most resembles.

    >>> nearest("laep", ["default", "lape"])
    "'laep' is not one of default, lape (did you mean 'lape'?)"
    """
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{word!r} is not one of {', '.join(names)}{hint}"
