"""A pickle reader for files that nobody vouches for: it knows containers, numbers, text and tensors, and runs nothing.

Python's own unpickler calls what the file names, and even a restricted one can be made to crash or to loop (by hashing
a deeply nested tuple, say). This one interprets the opcodes that `torch.save` writes, and knows no others. What would
be made by a class or function that it does not know (paths, devices, NumPy scalars, config objects beside the weights)
is an `Opaque` value, of which there is nothing but that name: nothing is imported or called to make it.
"""

import io
import pickletools
import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lape_jax.port.archive import RefusedError

DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
    "torch.ComplexFloatStorage": np.complex64,
    "torch.ComplexDoubleStorage": np.complex128,
    "torch.QInt8Storage": np.int8,
    "torch.QUInt8Storage": np.uint8,
    "torch.QInt32Storage": np.int32,
    "torch.storage.UntypedStorage": np.uint8,
}
NAMESPACE = "argparse.Namespace"  # the `args` of training scripts; read as a bag of values
ORDERED_DICT = "collections.OrderedDict"
DEFAULT_DICT = "collections.defaultdict"
SETS = ("__builtin__.set", "builtins.set")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
SUBCLASS = "torch._tensor._rebuild_from_type_v2"  # of a tensor that has attributes, or a class of its own
GLOBALS = frozenset([*DTYPES, NAMESPACE, ORDERED_DICT, DEFAULT_DICT, *SETS, *TENSORS, *PARAMETERS, SUBCLASS])
# What no checkpoint refers to, and files made to do harm do. They would do none here: refusing them is for the reader.
HARMFUL = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|socket|shutil|runpy|importlib|ctypes|webbrowser)\..*"
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|open|__import__|input|breakpoint)"
)

# Opcodes that push the value that follows them in the stream, or a constant.
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
LITERALS = frozenset([*NUMBERS, *TEXTS, *BYTES])
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PUTS = frozenset(["BINPUT", "LONG_BINPUT"])
GETS = frozenset(["BINGET", "LONG_BINGET"])
KEYS = (str, bytes, int, float, bool, type(None))


class Opaque(NamedTuple):
    """A class or function that the pickle refers to, or what that would make. The name is never looked up."""

    name: str


class Storage(NamedTuple):
    """A flat piece of memory that tensors are views into."""

    memory: bytes | bytearray
    dtype: np.dtype


def unpickle(stream: io.BufferedIOBase, storage: Callable[[Any], Storage], skipped: set[str] | None = None) -> Any:
    """Reads one pickle and leaves `stream` behind it. `storage` maps a persistent id to the memory it stands for.

    Entries of a dict or set whose key is not a plain one (see `KEYS`) are left out.

    Args:
        skipped: gets the names of all classes and functions whose values are `Opaque`.

    Raises:
        RefusedError: the pickle refers to something that runs code, or is none that torch.save writes.
        ValueError, IndexError, ...: it is damaged.
    """
    return _Machine(storage, set() if skipped is None else skipped).run(stream)


class _Machine:
    """The stack machine of the pickle format (see `pickletools`), cut down to what checkpoints need."""

    def __init__(self, storage: Callable[[Any], Storage], skipped: set[str]):
        self.storage = storage
        self.skipped = skipped
        self.stack: list = []
        self.outer: list[list] = []  # stacks below the current mark
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BufferedIOBase) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name != "STOP":  # which is the last one
                self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in PUTS:
            self.memo[argument] = self.stack[-1]
        elif opcode in GETS:
            self.stack.append(self.memo[argument])
        else:
            self.build(opcode, argument)

    def build(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS":
                items = self.since_mark()
                _extend(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [(key, value)])
            case "SETITEMS":
                items = self.since_mark()
                _update(self.stack[-1], zip(items[::2], items[1::2], strict=True))
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = self.since_mark()
                if not isinstance(self.stack[-1], Opaque):
                    _expect(self.stack[-1], set).update(filter(_is_key, items))
            case "FROZENSET":
                items = self.since_mark()
                self.stack.append(frozenset(filter(_is_key, items)))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case _:
                self.call(opcode, argument)

    def call(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "GLOBAL":
                stack.append(self.named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
                stack.append(self.named(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), Opaque)
                stack.append(_call(function.name, arguments))
            case "NEWOBJ_EX":
                _, _, kind = stack.pop(), stack.pop(), _expect(stack.pop(), Opaque)
                stack.append(Opaque(kind.name))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], SimpleNamespace):
                    vars(stack[-1]).update(_expect(state, dict))
                elif not isinstance(stack[-1], Opaque):
                    _expect(stack[-1], dict)  # attributes of an OrderedDict, such as _metadata: no weights among them
            case "BINPERSID":
                pid = _expect(stack.pop(), tuple)
                # Before PyTorch 1.6, the source code of a class of modules whose object was saved whole.
                stack.append(_expect(pid[1], Opaque) if pid[0] == "module" else self.storage(pid))
            case _:
                raise RefusedError(f"its pickle uses {opcode}, which torch.save does not write")

    def named(self, name: str) -> Opaque:
        if HARMFUL.fullmatch(name):
            raise RefusedError(f"its pickle refers to {name!r}, which runs code: that is no file of weights")
        if name not in GLOBALS:
            self.skipped.add(name)
        return Opaque(name)

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items


def _call(name: str, arguments: tuple) -> Any:
    """What the global `name` makes of `arguments`."""
    if name in TENSORS:
        return _tensor(*arguments)
    if name in PARAMETERS:
        return arguments[0] if isinstance(arguments[0], Opaque) else _expect(arguments[0], np.ndarray)
    if name == SUBCLASS:
        function, _, inner, _ = arguments
        return _call(_expect(function, Opaque).name, _expect(inner, tuple))
    if name == NAMESPACE and not arguments:
        return SimpleNamespace()
    if name == ORDERED_DICT:
        pairs = _expect(arguments[0], list) if arguments else ()
        return {key: value for key, value in pairs if _is_key(key)}
    if name == DEFAULT_DICT:
        return {}
    if name in SETS:
        return set(filter(_is_key, _expect(arguments[0], list)))
    if name in GLOBALS:
        raise RefusedError(f"its pickle calls {name!r} in a way that torch.save does not")
    return Opaque(name)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *state: Any) -> np.ndarray:
    """The view of `storage` with the given size and stride, in elements; `state` is (requires_grad, hooks, metadata).

    Raises:
        RefusedError: the view leaves the storage, or is not a plain one.
    """
    memory, dtype = _expect(storage, Storage)
    size, stride = _expect(size, tuple), _expect(stride, tuple)
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(size) != len(stride):
        raise RefusedError("a tensor has a size, stride or offset that is not made of whole numbers")
    if len(state) > 2 and state[2]:
        raise RefusedError("a tensor is conjugated or negated, which is not supported")
    if 0 in size:
        return np.zeros(size, dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(memory) // dtype.itemsize:
        raise RefusedError(
            f"a tensor with size {size}, stride {stride} and offset {offset} reaches beyond "
            f"its {len(memory) // dtype.itemsize} stored values"
        )
    strides = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, memory, offset * dtype.itemsize, strides)


def storage_id(pid: Any) -> tuple[np.dtype, str, int, int]:
    """Takes a persistent id apart: element type, key, number of elements, bytes.

    Raises:
        RefusedError: it does not describe a storage.
    """
    # ("storage", type, key, device, elements) and, in the format before PyTorch 1.6, metadata of views (never written).
    kind, type_name, key, _, elements, *view = _expect(pid, tuple)
    name = _expect(type_name, Opaque).name
    if kind != "storage" or name not in DTYPES or any(part is not None for part in view):
        raise RefusedError(f"its pickle refers to something in {name} that is not a storage of tensors")
    if type(elements) is not int or elements < 0:
        raise RefusedError("a storage has a number of elements that is not a whole number")
    dtype = np.dtype(DTYPES[name])
    return dtype, _expect(key, str), elements, elements * dtype.itemsize


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise RefusedError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _is_key(key: Any) -> bool:
    """Whether it is a plain key: to hash a tuple that was nested to be expensive can take for ever."""
    return isinstance(key, KEYS)


def _extend(target: Any, items: list) -> None:
    if not isinstance(target, Opaque):
        _expect(target, list).extend(items)


def _update(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    pairs = [(key, value) for key, value in items if _is_key(key)]
    if not isinstance(target, Opaque):
        _expect(target, dict).update(pairs)
