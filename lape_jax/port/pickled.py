"""A pickle reader for files that nobody vouches for: it knows containers, numbers, text and tensors, and runs nothing.

Python's own unpickler calls what the file names, and even a restricted one can be made to crash or to loop (by hashing
a deeply nested tuple, say). This one interprets the few opcodes that `torch.save` writes, and knows no others.
"""

import io
import pickletools
from collections.abc import Callable
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
}
NAMESPACE = "argparse.Namespace"  # the `args` of training scripts; read as a bag of values
ORDERED_DICT = "collections.OrderedDict"
SETS = ("__builtin__.set", "builtins.set")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
GLOBALS = frozenset([*DTYPES, NAMESPACE, ORDERED_DICT, *SETS, *TENSORS, *PARAMETERS])

# Opcodes that push the value that follows them in the stream, or a constant.
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
LITERALS = frozenset([*NUMBERS, *TEXTS, *BYTES])
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PUTS = frozenset(["BINPUT", "LONG_BINPUT"])
GETS = frozenset(["BINGET", "LONG_BINGET"])
KEYS = (str, bytes, int, float, bool, type(None))


class Global(NamedTuple):
    """A name that the pickle refers to. It is only ever compared, never looked up."""

    name: str


class Storage(NamedTuple):
    """A flat piece of memory that tensors are views into."""

    memory: bytes | bytearray
    dtype: np.dtype


def unpickle(stream: io.BufferedIOBase, storage: Callable[[Any], Storage]) -> Any:
    """Reads one pickle and leaves `stream` behind it. `storage` maps a persistent id to the memory it stands for.

    Raises:
        RefusedError: the pickle holds something else than containers, numbers, text and tensors.
        ValueError, IndexError, ...: it is damaged.
    """
    return _Machine(storage).run(stream)


class _Machine:
    """The stack machine of the pickle format (see `pickletools`), cut down to what state dicts need."""

    def __init__(self, storage: Callable[[Any], Storage]):
        self.storage = storage
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
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = self.since_mark()
                _expect(self.stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[_key(key)] = value
            case "SETITEMS":
                items = self.since_mark()
                target = _expect(self.stack[-1], dict)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    target[_key(key)] = value
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), Global)
                stack.append(_call(function.name, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], SimpleNamespace):
                    vars(stack[-1]).update(_expect(state, dict))
                else:
                    _expect(stack[-1], dict)  # attributes of an OrderedDict, such as _metadata: no weights among them
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case _:
                raise RefusedError(f"its pickle uses {opcode}, which torch.save does not write for a state dict")

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items


def _global(name: str) -> Global:
    if name not in GLOBALS:
        raise RefusedError(
            f"its pickle refers to {name!r}, and only tensors and plain containers are read: "
            f"save the weights alone, as in torch.save(model.state_dict(), path)"
        )
    return Global(name)


def _call(name: str, arguments: tuple) -> Any:
    """What the global `name` makes of `arguments`."""
    if name in TENSORS:
        return _tensor(*arguments)
    if name in PARAMETERS:
        return _expect(arguments[0], np.ndarray)
    if name == NAMESPACE and not arguments:
        return SimpleNamespace()
    if name == ORDERED_DICT:
        return {_key(key): value for key, value in (_expect(arguments[0], list) if arguments else ())}
    if name in SETS:
        return {_key(item) for item in _expect(arguments[0], list)}
    raise RefusedError(f"its pickle calls {name!r} in a way that torch.save does not")


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
    name = _expect(type_name, Global).name
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


def _key(key: Any) -> Any:
    """`key`, if it is a plain one: to hash a tuple that was nested to be expensive can take for ever."""
    if not isinstance(key, KEYS):
        raise RefusedError(f"its pickle has a {type(key).__name__} for a key")
    return key
