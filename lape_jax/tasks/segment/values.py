"""What the values in the files of maps seem to mean, where they are not the numbers of the classes."""

from collections.abc import Collection

from lape_jax.tasks.segment.scene import NO_CLASS


def missing(found: Collection[int], first: int, classes: int) -> list[int]:
    """The classes, from 0, whose values (`first` on) are not among those that were found."""
    return [number for number in range(classes) if number + first not in found]


def hint(found: Collection[int], first: int, classes: int) -> str:
    """The likely cause of values that are missing or mean nothing, to be put behind a message; "" if there is none.

    >>> hint([0, 128], 0, 2)
    '; its values are 0 and 128: replace each by the number of its class, 0 to 1'
    """
    end, gone = first + classes, missing(found, first, classes)
    strangers = sorted(value for value in found if value >= end and value != NO_CLASS)
    known = [value for value in found if first <= value < end]
    if strangers == [end] and first not in found:
        return f"; it seems to count its classes from {first + 1}: subtract 1 from all of them"
    if strangers == [end]:
        return f"; if {first} is what belongs to no class, as the background, it needs a name, too: the first"
    if strangers and len(strangers) + len(known) <= classes:
        values = _and([*sorted(known), *strangers])
        return f"; its values are {values}: replace each by the number of its class, {first} to {end - 1}"
    if gone == [0] and not strangers:
        return f"; if the classes are counted from {first + 1}, subtract 1 from all of them"
    if gone and not strangers and NO_CLASS in found:
        return f"; {NO_CLASS} stands for no class: if it means one, replace it by the number of that class"
    return ""


def _and(found: list[int]) -> str:
    shown = [*map(str, found[:6]), *(["..."] if len(found) > 6 else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
