"""A label is a number that stands for a name: how the numbers of a data set become those that a model has learned."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from lape_jax.data.example import Source
from lape_jax.data.listing import some
from lape_jax.errors import UserError

UNKNOWN = -1  # number of a class that the model does not know
Item = TypeVar("Item")


class Match(NamedTuple):
    """How classes of a data set stand to those that were learned."""

    numbers: tuple[int, ...]  # of each class of the data set the number that was learned for it, or UNKNOWN
    said: str  # what a person should know of it; "" if the two are the same


def match(learned: Sequence[str], found: Sequence[str], how: str, *, what: str, where: str) -> Match:
    """The classes of a data set among those that a model has learned.

    By name, where one set of names holds the other; by "order", number by number, where there are as many.

    Args:
        learned: names of the model's classes.
        found: names of the data set's.
        how: "name" or "order".
        what: who has learned, and `where` is the data set, in messages.

    Raises:
        UserError: neither holds the other; or by order, their counts differ.
    """
    learned, found = tuple(learned), tuple(found)
    if learned == found:
        return Match(tuple(range(len(found))), "")
    if how == "order":
        if len(learned) != len(found):
            raise UserError(
                f"{what} knows {len(learned)} classes, and {where} has {len(found)}: data.match=order needs as many"
            )
        return Match(tuple(range(len(found))), f"classes of {where} are taken by their order (data.match=order)")
    missing, strangers = set(learned) - set(found), set(found) - set(learned)
    if missing and strangers:
        raise UserError(
            f"{where} has classes that {what} does not know ({some(sorted(strangers))}), and lacks some that it knows "
            f"({some(sorted(missing))}): rename them, or match number by number with --config.data.match=order"
        )
    number = {name: index for index, name in enumerate(learned)}
    numbers = tuple(number.get(name, UNKNOWN) for name in found)
    if strangers:
        said = f"{where} has {len(strangers)} classes that {what} does not know, which are left out: "
        return Match(numbers, said + some(sorted(strangers)))
    if missing:
        said = f"{where} has {len(found)} of the {len(learned)} classes that {what} knows, matched by name"
        return Match(numbers, said)
    return Match(numbers, f"{where} has the classes of {what} in another order: they are matched by name")


class Relabelled(Generic[Item]):
    """A data set with the numbers and names of classes that a model has learned.

    Args:
        source: the data set.
        classes: the names that were learned.
        change: item of the source -> the same with another label.
    """

    def __init__(self, source: Source[Item], classes: Sequence[str], change: Callable[[Item], Item]):
        self.source, self.classes, self._change = source, tuple(classes), change

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        return self._change(self.source[index])
