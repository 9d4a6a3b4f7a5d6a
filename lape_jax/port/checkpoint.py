"""Where in a checkpoint the weights of a model are: under which keys, and behind which prefix of their names.

Training scripts put state dicts into dicts (`model`, `teacher`, `state_dict`, ...), and what wraps a model puts its own
name before those of the parameters (`module.`, `_orig_mod.`, `backbone.`, ...). Neither is looked up in a list here:
the dict and the prefix are those behind which the names are that the model knows. Names that only others have for the
same things become official ones first, see foreign.py.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from lape_jax.errors import UserError
from lape_jax.port.foreign import official
from lape_jax.port.params import first_few

# What torch.compile, Lightning, FSDP and checkpointing put before the names of whatever they wrap, also within a model.
WRAPPER = re.compile(r"(?<![^./])(_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DEPTH, MANY = 4, 10_000  # of dicts in dicts that are looked into
PREFIX_PARTS = 8  # of a name that may be before the model's own
ENOUGH = 6  # kinds of names that the model knows are behind a prefix, or it is chance
Result = TypeVar("Result")


class Part(NamedTuple):
    """A set of arrays in a checkpoint that may be the weights."""

    key: str  # of the dict in which it is, joined by dots through dicts in dicts; "" for the checkpoint itself
    prefix: str
    arrays: dict[str, Any]  # by name without the prefix
    outside: dict[str, Any]  # the dict's other arrays, by their whole names
    notes: tuple[str, ...]  # what was done to get at them, for people
    hits: int  # kinds of names that the model knows

    @property
    def label(self) -> str:
        """What selects it, see `select`."""
        return ".".join(filter(None, [self.key, self.prefix.rstrip("./")]))


def choose(
    checkpoint: Mapping[str, Any], known: frozenset[str], attempt: Callable[[Part], Result]
) -> tuple[Part, Result]:
    """The part of `checkpoint` that fits, and what `attempt` has made of it.

    Args:
        known: the `pattern` of each name that the model knows.
        attempt: raises UserError if the part does not fit.

    Raises:
        UserError: two parts fit, or none; then it says why not that with the most known names.
    """
    fitting: list[tuple[Part, Result]] = []
    first: UserError | None = None
    found = parts(checkpoint, known)
    for part in found:
        try:
            fitting.append((part, attempt(part)))
        except UserError as error:
            first = first or error
    if not fitting and found[0].outside:
        ends = " or ".join(repr(part.label) for part in found[:3])
        raise UserError(f"{first} (KEY of FILE:KEY can end with {ends}, to leave out the rest)") from first
    if not fitting:
        raise first
    if len(fitting) > 1:
        keys = Counter(part.key for part, _ in fitting)
        labels = [part.key if part.key and keys[part.key] == 1 else part.label for part, _ in fitting if part.label]
        places = " and ".join(f"under {label!r}" for label in labels[:4])
        raise UserError(f"the checkpoint has weights {places}: pass the ones that you mean (FILE:{labels[-1]})")
    return fitting[0]


def parts(checkpoint: Mapping[str, Any], known: frozenset[str]) -> list[Part]:
    """What may be the weights, the most probable first; at least one, be it the checkpoint as it is."""
    found = [part for key, arrays in _dicts(checkpoint) for part in _parts(key, *official(arrays), known)]
    if not found:
        return [Part("", "", dict(checkpoint), {}, (), 0)]
    found.sort(key=lambda part: (part.hits, 0 if part.hits else len(part.arrays)), reverse=True)
    most = found[0].hits
    return [part for part in found if 2 * part.hits >= most] if most else found[:1]


def pattern(name: str) -> str:
    """`name` with # for each number."""
    return re.sub(r"\d+", "#", name)


def select(checkpoint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What is under `key` in dicts in dicts, or behind the prefix `key` of the names, or first this and then that.

    Raises:
        UserError: there is no such key; names those that there are.
    """
    found = _under(checkpoint, key)
    if found is None:
        keys = [inner for inner, _ in _dicts(checkpoint) if inner] or _prefixes(checkpoint)
        there = f"the keys there are: {first_few(keys, 8)}" if keys else "it has no keys to choose from"
        raise UserError(f"there are no weights under {key!r}: {there}")
    return found


def _under(checkpoint: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    if isinstance(checkpoint.get(key), Mapping):
        return checkpoint[key]
    for dot in re.finditer(r"\.", key):
        inner = checkpoint.get(key[: dot.start()])
        if isinstance(inner, Mapping) and (found := _under(inner, key[dot.end() :])) is not None:
            return found
    names = [name for name in checkpoint if isinstance(name, str) and name.startswith((f"{key}.", f"{key}/"))]
    return {name[len(key) + 1 :]: checkpoint[name] for name in names} or None


def _prefixes(checkpoint: Mapping[str, Any]) -> list[str]:
    """The first parts of names that have more than one."""
    firsts = (re.match(r"([^./]+)[./]", name) for name in checkpoint if isinstance(name, str))
    return list(dict.fromkeys(first[1] for first in firsts if first))


def _dicts(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All dicts that hold arrays, by key, the outermost first."""
    queue: deque[tuple[int, str, Mapping]] = deque([(0, "", checkpoint)])
    for _ in range(MANY):  # one dict may be in many places
        if not queue:
            return
        depth, key, entries = queue.popleft()
        if any(hasattr(value, "shape") for value in entries.values()):
            yield key, entries
        if depth < DEPTH and len(queue) < MANY:
            queue += [
                (depth + 1, f"{key}.{name}" if key else name, inner)
                for name, inner in entries.items()
                if isinstance(name, str) and isinstance(inner, Mapping)
            ]


def _parts(key: str, entries: Mapping[Any, Any], whose: str, known: frozenset[str]) -> list[Part]:
    """`entries` without the prefix behind which most known names are, and the same for other sets of them.

    Args:
        whose: names they have had, if they are not the official ones.
    """
    names = {name: WRAPPER.sub("", name) for name in entries if isinstance(name, str)}
    if len(set(names.values())) < len(names):
        names = {name: name for name in names}
    hits = _hits([name for original, name in names.items() if hasattr(entries[original], "shape")], known)
    begun = [f"read from under {key!r}"] if key else []
    begun += [f"the names are those of {whose}: read as official ones"] if whose else []
    if not hits:
        return [Part(key, "", dict(entries), {}, tuple(begun), 0)]
    found = []
    for prefix in hits:
        others = tuple(other for other in hits if other != prefix)
        arrays, outside, beside = {}, {}, []
        for original, value in entries.items():
            name = names.get(original)
            inside = name is not None and name.startswith(prefix)
            is_array = hasattr(value, "shape") and (value.shape or "." in (name or ""))  # or a counter
            if inside and (is_array or pattern(name[len(prefix) :]) in known):
                arrays[name[len(prefix) :]] = value
            elif not is_array:
                beside.append(str(original))
            elif not others or name is None or not name.startswith(others):
                outside[original] = value
        notes = begun + _taken(prefix, {original: name for original, name in names.items() if name.startswith(prefix)})
        notes += [f"not read, as another set of weights: {', '.join(map(repr, others))}"] if others else []
        notes += [f"not read, as they are no weights: {first_few(beside, 5)}"] if beside else []
        found.append(Part(key, prefix, arrays, outside, tuple(notes), hits[prefix]))
    return found


def _hits(names: list[str], known: frozenset[str]) -> dict[str, int]:
    """The prefixes behind each of which are names of a model, and how many kinds of them, most first."""
    behind: dict[str, set[str]] = {}
    for name in names:
        starts = [0, *(dot.end() for dot in re.finditer(r"[./]", name))]
        for start in starts[:PREFIX_PARTS]:
            if (kind := pattern(name[start:])) in known:
                behind.setdefault(name[:start], set()).add(kind)
    hits: dict[str, int] = {}
    for prefix, kinds in sorted(behind.items(), key=lambda item: (-len(item[1]), len(item[0]))):
        # A stage or a block has many names of a model, too, but none of those that occur once.
        probable = len(kinds) >= ENOUGH and any("#" not in kind for kind in kinds)
        if (probable or not prefix) and not any(prefix.startswith(o) or o.startswith(prefix) for o in hits):
            hits[prefix] = len(kinds)
    return hits


def _taken(prefix: str, names: Mapping[str, str]) -> list[str]:
    """What was taken off `names`, from original ones to such as begin with `prefix`."""
    rests = {original: name[len(prefix) :] for original, name in names.items()}
    taken = next((original.removesuffix(rest) for original, rest in rests.items() if original.endswith(rest)), prefix)
    inner = {m[0] for original, rest in rests.items() if original != taken + rest for m in WRAPPER.finditer(original)}
    notes = [f"{taken!r} taken off the names"] if taken else []
    return notes + ([f"{' and '.join(sorted(map(repr, inner)))} taken out of the names"] if inner else [])
