"""What is said of a data set that is looked over, whatever there is to learn in it; each task adds its own lines."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from lape_jax.data import survey
from lape_jax.data.example import Source
from lape_jax.data.offline import parts
from lape_jax.data.offline.parts import Say
from lape_jax.errors import UserError

SAMPLE = 200  # examples per split that are read unless all are
NAMED = 20  # of a split's examples that cannot be used, whose reasons are said
MOST = 100  # ... of all, before a copy is written: the rest is not looked at then
Found = TypeVar("Found")


def over(
    names: Sequence[str],
    look: Callable[[str], int],
    bad: str,
    say: Say,
    hint: Callable[[Sequence[str]], str] = lambda unusable: "",
) -> None:
    """Looks at split after split, also when one of them cannot be used.

    Args:
        look: says what a split holds, and returns how many of its examples are bad, or raises UserError.
        bad: what they are, as "of the images cannot be read".
        hint: to go on without splits that cannot be used, with these names.

    Raises:
        UserError: at the end, if a split cannot be used, or an example is bad.
    """
    unusable, count = [], 0
    for split in names:
        try:
            count += look(split)
        except UserError as error:
            say(f"{split}: cannot be used: {error}")
            unusable.append(split)
    if unusable:
        raise UserError(f"{', '.join(unusable)} cannot be used, as said above{hint(unusable)}")
    if count:
        raise UserError(f"{count} {bad}, as said above")


def chosen(count: int, everything: bool) -> list[int]:
    """Which of `count` examples are read."""
    return survey.spread(count, count if everything else SAMPLE)


def read(indices: Sequence[int], everything: bool, bad: int, word: str) -> str:
    """A line on how many were read."""
    return f"  {len(indices):,} read{'' if everything else ' (--all reads all)'}, {bad} of them {word}"


def sizes(found: Counter[tuple[int, int]]) -> list[str]:
    """A line on (height, width), if there are such."""
    if not found:
        return []
    heights, widths = zip(*found, strict=True)
    height, width = found.most_common(1)[0][0]
    return [f"  height {span(heights)}, width {span(widths)} pixels; most often {height} x {width}"]


def reasons(word: str, found: Sequence[str]) -> list[str]:
    """A line for each of the first NAMED reasons, and how many there are more."""
    more = [f"  {word}: {len(found) - NAMED} more"] if len(found) > NAMED else []
    return [f"  {word}: {reason}" for reason in found[:NAMED]] + more


def span(values: Sequence[int]) -> str:
    """
    >>> span([3, 1200]), span([7])
    ('3 to 1,200', '7')
    """
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def usable(
    splits: Mapping[str, Source], look: Callable[[Source, Callable[[str], None]], Found], kind: str, say: Say
) -> dict[str, Found]:
    """Looks at everything in all splits, before a copy is written: split -> what `look` finds.

    Args:
        look: reads all of a split, and tells its second argument of each example why it cannot be used, or "".
        kind: what the examples are called, as "images".

    Raises:
        UserError: some cannot be used; they were named.
    """
    progress, bad = parts.Progress(sum(map(len, splits.values())), say), []

    def watching(split: str) -> Callable[[str], None]:
        def watch(reason: str) -> None:
            progress.step()
            if reason:
                bad.append(reason)
                say(f"{split}: {reason}")
                if len(bad) == MOST:
                    raise UserError(f"{MOST} {kind} cannot be used, as said above; the rest was not looked at")

        return watch

    found = {split: look(source, watching(split)) for split, source in splits.items()}
    if bad:
        raise UserError(f"{len(bad)} of the {progress.total} {kind} cannot be used, as said above: nothing was written")
    say(f"all {progress.total:,} {kind} can be used")
    return found
