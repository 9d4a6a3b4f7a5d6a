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
    return f"{word!r} is not one of {listed(names)}{hint}"


def listed(items: Iterable[object], most: int = 240) -> str:
    """The items, separated by commas; of more than about `most` characters only the first, and how many others.

    >>> listed(["one", "two", "three", "four"], most=10)
    'one, two and 2 more'
    """
    names = [str(item) for item in items]
    shown = list(names)
    while len(shown) > 1 and len(", ".join(shown)) > most:
        shown.pop()
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")
