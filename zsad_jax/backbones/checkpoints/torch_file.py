"""PyTorch files without PyTorch: their arrays by name, found without executing anything.

A small machine interprets the pickle in a file. It knows plain containers and tensors, and makes an empty
object of each class that training scripts store beside them: nothing is imported or called. Values are read
last, for the tensors that are wanted, after their sizes were compared with what the file holds.
"""

import functools
import io
import itertools
import math
import pathlib
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MAX_STEPS = 2**18  # operations and nested parts; a large CLIP has about 30,000
MAX_PICKLE = 2**24  # bytes
MAX_NAME = 500

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What the names of harmless classes and functions begin with; their objects are empty here.
_EMPTY = (
    *(
        "__torch__.",
        "torch.nn.",
        "torch.optim.",
        "torch._utils._rebuild_",
        "torch.Size",
        "torch.device",
    ),
    *("torch.float", "torch.bfloat", "torch.int", "torch.uint", "torch.complex", "torch.q"),
    *("torch.Q", "torch.Complex", "torch.storage.Untyped", "torch.serialization._get_layout"),
    *("numpy.core.", "numpy._core.", "numpy.dtype", "numpy.ndarray", "_codecs.encode"),
    *("argparse.Namespace", "pathlib.", "datetime.", "collections."),
)
_BUILTINS = ("dict", "set", "list", "tuple", "int", "float", "str", "bool", "complex")
_KNOWN = {
    *(f"{module}.{kind}" for module in ("torch", "torch.storage") for kind in _STORAGES),
    *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in _BUILTINS),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# Operations by the number of values that they take from the stack, or all that follow the last mark.
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2, "NEWOBJ": 2,
          "BUILD": 1, "BINPERSID": 1, "STACK_GLOBAL": 2, "STOP": 1}  # fmt: skip
_TAKES_MARKED = {"TUPLE", "APPENDS", "SETITEMS"}


class RefusedError(ValueError):
    """A pickle refers to something that is not known to be harmless."""


class _Global(str):
    """The full name of a class or a function, which is never looked up."""


class _Object:
    """An object of any class: its state alone."""

    state: Any = None


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    length: int


class Tensor(NamedTuple):
    """A tensor whose values are not read yet; offset and stride in elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def check(self) -> None:
        """Raises ValueError if the tensor does not fit its storage."""
        numbers, length = (self.offset, *self.size, *self.stride), self.storage.length
        valid = all(isinstance(n, int) and n >= 0 for n in numbers)
        if not valid or len(self.size) != len(self.stride):
            raise ValueError("a tensor has a broken shape")
        steps = ((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        # A stride of 0 would make a huge tensor of few values.
        if math.prod(self.size) > length or (
            0 not in self.size and self.offset + sum(steps) >= length
        ):
            raise ValueError("a tensor reaches beyond its storage")


Tensors = dict[str, Tensor]


def read_tensors(
    path: pathlib.Path, select: Callable[[Tensors], Tensors]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of a file by name: the keys of nested dicts and the positions in lists, joined by ".".

    Args:
      path: the file.
      select: returns those of the tensors that are wanted, by the names that they get.
    """
    with zipfile.ZipFile(path) as archive:
        [name] = [one for one in archive.namelist() if one.split("/")[-1] == "data.pkl"]
        if archive.getinfo(name).file_size > MAX_PICKLE:
            raise ValueError("its data.pkl is too large")
        tensors = dict(_find_tensors(_interpret(io.BytesIO(archive.read(name)))))
        folder = name.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        swap = order in archive.namelist() and archive.read(order).strip() == b"big"

        @functools.lru_cache(maxsize=1)  # tensors may share a storage
        def read(storage: _Storage) -> np.ndarray:
            member = archive.getinfo(f"{folder}data/{storage.key}")
            if member.file_size != storage.length * storage.dtype.itemsize:
                raise ValueError(f"storage {storage.key} does not have the size of its tensors")
            values = np.frombuffer(archive.read(member), storage.dtype)
            return (values.byteswap() if swap else values).view(np.uint8)

        for name, (storage, offset, size, stride) in select(tensors).items():
            dtype, one = storage.dtype, storage.dtype.itemsize
            steps = tuple(one * step for step in stride)
            view = np.ndarray(size, dtype, read(storage), one * offset, steps)
            yield name, np.array(view)  # a view would keep the whole storage in memory


def _interpret(file: BinaryIO) -> Any:
    """Returns the content of a pickle: containers, `Tensor`s, numbers and texts."""
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    argument: Any
    for step, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if step > MAX_STEPS:
            raise ValueError("it has too many parts")
        name, items = operation.name, []
        if name in _TAKES_MARKED:
            items, stack = stack, marked.pop()
        elif count := _TAKES.get(name):
            items = stack[-count:]
            del stack[-count:]
        match name:
            case "STOP":
                return items[0]
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marked.append(stack)
                stack = []
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if name == "EMPTY_LIST" else {})
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(items))
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS":
                _fill(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(_refer(*(items or argument.split(" ", 1))))
            case "REDUCE" | "NEWOBJ" | "BINPERSID":
                stack.append(_make(*items))
            case "BUILD":
                if isinstance(stack[-1], _Object):
                    stack[-1].state = items[0]
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name.startswith(("BIN", "SHORT_BIN", "LONG")):  # numbers and texts
                stack.append(argument)
            case _:
                raise RefusedError(f"the operation {name}")
    raise ValueError("it is empty")


def _fill(container: Any, items: list[Any]) -> None:
    """Adds items to a list or a dict; keys that cannot be part of a name are ignored."""
    if isinstance(container, list):
        container += items
    elif isinstance(container, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        container |= {key: value for key, value in pairs if isinstance(key, str | int)}


def _refer(module: str, name: str) -> _Global:
    full = f"{module}.{name}"
    if full not in _KNOWN and not full.startswith(_EMPTY):
        raise RefusedError(full)
    return _Global(full)


def _make(made: Any, arguments: Any = None) -> Any:
    """Returns what a call with arguments makes, or a reference to a storage without any."""
    match made, arguments:
        case ("storage", _Global() as kind, str(key), _, int(length), *_), None:
            # Tensors of other types, such as complex numbers, are empty objects.
            dtype = _STORAGES.get(kind.rpartition(".")[2])
            return _Object() if dtype is None else _Storage(np.dtype(dtype), key, length)
        case "torch._utils._rebuild_tensor_v2", (
            _Storage() as storage,
            offset,
            tuple(size),
            tuple(stride),
            *_,
        ):
            return Tensor(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (data, *_):
            return data
        case "collections.OrderedDict" | "collections.defaultdict", _:
            return {}
        case _Global(), _:
            return _Object()
    raise RefusedError("something other than a known name")


def _find_tensors(
    value: Any, name: str = "", steps: Iterator[int] | None = None
) -> Iterator[tuple[str, Tensor]]:
    steps = steps or itertools.count()
    # A container that is part of several others is visited several times.
    if next(steps) > MAX_STEPS or len(name) > MAX_NAME:
        raise ValueError("it is nested too deeply")
    value = value.state if isinstance(value, _Object) else value
    if isinstance(value, Tensor):
        value.check()
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _find_tensors(inner, f"{name}.{key}" if name else str(key), steps)
