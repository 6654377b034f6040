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
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MAX_STEPS = 2**18  # operations and nested parts; a large CLIP has about 30,000
MAX_PICKLE = 2**24  # bytes
MAX_NAME = 500
OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # how files before PyTorch 1.6 begin

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Classes and functions whose objects are empty here, besides those of modules: nothing depends on them.
_EMPTY = ("__torch__.", "torch.nn.", "torch.optim.", "numpy.core.", "numpy._core.")
_KNOWN = {
    *(f"{module}.{kind}" for module in ("torch", "torch.storage") for kind in _STORAGES),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
    *("collections.OrderedDict", "collections.defaultdict", "builtins.set", "__builtin__.set"),
    *("torch.Size", "torch.device", "numpy.dtype", "numpy.ndarray", "_codecs.encode"),
    "argparse.Namespace",
}


class RefusedError(ValueError):
    """A pickle refers to something that is not known to be harmless."""


class _Global(NamedTuple):
    """The full name of a class or a function, which is never looked up."""

    name: str


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
        # A stride of 0 would make a huge tensor of few values.
        if (
            len(self.size) != len(self.stride)
            or min((0, self.offset, *self.size, *self.stride)) < 0
        ):
            raise ValueError("a tensor has a broken shape")
        steps = ((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        last = self.offset + sum(steps)
        count = self.storage.length
        if math.prod(self.size) > count or (0 not in self.size and last >= count):
            raise ValueError("a tensor reaches beyond its storage")

    def of(self, values: np.ndarray) -> np.ndarray:
        """Returns the array of the values of the storage."""
        if len(values) != self.storage.length:
            raise ValueError(f"storage {self.storage.key} is incomplete")
        steps = tuple(step * values.itemsize for step in self.stride)
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.size, steps)
        return np.array(view)  # a view would keep the whole storage in memory


Tensors = dict[str, Tensor]
Opened = tuple[Tensors, Callable[[_Storage], np.ndarray]]


def read_tensors(
    path: pathlib.Path, select: Callable[[Tensors], Tensors]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of a file by name: the keys of nested dicts and the positions in lists, joined by ".".

    Args:
      path: the file.
      select: returns those of the tensors that are wanted, by the names that they get.
    """
    with open(path, "rb") as file:
        tensors, read = (_open_archive if zipfile.is_zipfile(file) else _open_old)(file)
        read = functools.lru_cache(maxsize=1)(read)  # tensors may share a storage
        for name, tensor in select(tensors).items():
            yield name, tensor.of(read(tensor.storage))


def _open_archive(file: BinaryIO) -> Opened:
    archive = zipfile.ZipFile(file)
    [name] = [one for one in archive.namelist() if one.split("/")[-1] == "data.pkl"]
    if archive.getinfo(name).file_size > MAX_PICKLE:
        raise ValueError("its data.pkl is too large")
    content = _interpret(io.BytesIO(archive.read(name)))
    folder = name.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    swap = order in archive.namelist() and archive.read(order).strip() == b"big"

    def read(storage: _Storage) -> np.ndarray:
        member = archive.getinfo(f"{folder}data/{storage.key}")
        size = storage.length * storage.dtype.itemsize
        if member.file_size != size:
            raise ValueError(
                f"storage {storage.key} has {member.file_size} bytes instead of {size}"
            )
        values = np.frombuffer(archive.read(member), storage.dtype)
        return values.byteswap() if swap else values

    return dict(_find_tensors(content)), read


def _open_old(file: BinaryIO) -> Opened:
    """Opens a file of PyTorch before 1.6: five pickles, then each storage after its number of values."""
    file.seek(0)
    head = io.BytesIO(file.read(MAX_PICKLE))
    if not head.getvalue().startswith(OLD_FORMAT):
        raise ValueError("its format is unknown")
    _, _, _, content, keys = (_interpret(head) for _ in range(5))
    tensors = dict(_find_tensors(content))
    storages = {one.storage.key: one.storage for one in tensors.values()}
    places, end = {}, head.tell()
    for key in keys:
        places[key] = end
        end += 8 + storages[key].length * storages[key].dtype.itemsize
    if file.seek(0, io.SEEK_END) != end:
        raise ValueError("it is cut short, or has surplus bytes")

    def read(storage: _Storage) -> np.ndarray:
        file.seek(places[storage.key])
        if int.from_bytes(file.read(8), "little") != storage.length:
            raise ValueError(f"storage {storage.key} has another length")
        return np.frombuffer(file.read(storage.length * storage.dtype.itemsize), storage.dtype)

    return tensors, read


def _interpret(file: BinaryIO) -> Any:
    """Returns the content of the next pickle in a file: containers, `Tensor`s, numbers and texts."""
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    argument: Any
    for step, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if step > MAX_STEPS:
            raise ValueError("it has too many parts")
        match operation.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marked.append(stack)
                stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True}.get(operation.name, False))
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                makers = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
                stack.append(makers.get(operation.name, _Object)())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "APPENDS" | "ADDITEMS" | "SETITEMS":
                items, stack = stack, marked.pop()
                if operation.name == "TUPLE":
                    stack.append(tuple(items))
                else:
                    _fill(stack[-1], items)
            case "APPEND" | "SETITEM":
                count = 1 if operation.name == "APPEND" else 2
                items = stack[-count:]
                del stack[-count:]
                _fill(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_refer(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [_refer(*stack[-2:])]
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack[-1] = _make(stack[-1], arguments)
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Object):
                    stack[-1].state = state
            case "BINPERSID":
                stack[-1] = _storage(stack[-1])
            case "INST" | "PERSID" | "PUT" | "GET" | "EXT1" | "EXT2" | "EXT4":
                raise RefusedError(f"the operation {operation.name}")
            case _ if argument is not None:
                stack.append(argument)
            case _:
                raise RefusedError(f"the operation {operation.name}")
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


def _make(called: Any, arguments: Any) -> Any:
    """Returns what a call makes."""
    match called, arguments:
        case _Global(name="torch._utils._rebuild_tensor_v2"), (
            _Storage() as storage, int(offset), tuple(size), tuple(stride), *_,
        ):  # fmt: skip
            if not all(isinstance(n, int) for n in (*size, *stride)):
                raise ValueError("a tensor has a broken shape")
            return Tensor(storage, offset, size, stride)
        case _Global(name="torch._utils._rebuild_parameter"), (data, *_):
            return data
        case _Global(name="collections.OrderedDict" | "collections.defaultdict"), _:
            return {}
        case _Global(), _:
            return _Object()
    raise RefusedError("a call of something else than a name")


def _storage(reference: Any) -> _Storage:
    """Returns the storage of ("storage", type, file below data/, device, number of values)."""
    match reference:
        case ("storage", _Global(name=kind), str(key), _, int(count), *_) if count >= 0:
            return _Storage(np.dtype(_STORAGES[kind.rpartition(".")[2]]), key, count)
    raise RefusedError("a reference that is not a storage")


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
