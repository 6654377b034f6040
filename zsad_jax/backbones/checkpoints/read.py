"""Reads weight files: names and shapes are checked, and nothing in a file is ever executed."""

import collections
import math
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

Tree = dict[str, Any]  # nested dicts with arrays as leaves
Arrays = Mapping[str, np.ndarray]  # by name
NAMES_SHOWN = 20

# What the readers raise for damaged files. A `UserError` is none of these, and passes unchanged.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error)
_BROKEN_FILE = (OSError, EOFError, ValueError, LookupError, RuntimeError, *_BROKEN_ZIP)


def read_arrays(path: PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz or safetensors file by name, floating-point ones as float32.

    The content decides the format. Two-byte arrays without a type are read as bfloat16, which numpy cannot
    name. Pickled objects are rejected.

    Raises:
      UserError: the file is missing, truncated or not a file of plain arrays.
    """
    path = _existing(path)
    kind, read = "npz", _read_npz
    try:
        if _is_safetensors(path):
            kind, read = "safetensors", _read_safetensors
        return read(path)
    except _BROKEN_FILE as error:
        raise UserError(
            f"{path} is not a readable {kind} file of plain arrays ({_reason(error)}). Pass a weight file or,"
            " if it was downloaded, delete it and fetch it again."
        ) from error


def find_damage(path: pathlib.Path) -> str:
    """Returns why a file is not a complete npz or safetensors file, "" if it is one; reads no arrays."""
    from safetensors import SafetensorError, safe_open

    try:
        if _is_safetensors(path):
            # The header gives the length of the file.
            with safe_open(path, framework="numpy"):
                return ""
        # The table of contents is at the end of a zip, so a truncated file has none.
        with zipfile.ZipFile(path):
            return ""
    except (SafetensorError, zipfile.BadZipFile):
        return "it is not a complete npz or safetensors file"


class MisfitError(UserError):
    """Arrays that do not fit a model: their source, and the problems in words."""

    def __init__(self, source: str, problems: str):
        super().__init__(
            f"{source} does not hold the weights of this model ({problems}). Check that it is the file of the"
            " named model, or delete it and fetch it again."
        )
        self.problems = problems


def fit_tree(
    arrays: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    source: str,
    name_in_file: Callable[[str], str] = str,
) -> Tree:
    """Arranges arrays as the tree that a module expects, and checks every name and shape.

    Args:
      arrays: contents of a file, nested or flat with "/" in the names.
      expected: nested dicts whose leaves have a `.shape` (from `jax.eval_shape`).
      source: the file or files, for the error.
      name_in_file: returns the name of an array in the file, for the error. Several arrays may be parts of one
        array there.

    Returns:
      Nested dicts of float32 arrays with the structure of `expected`.

    Raises:
      MisfitError: arrays are missing, unexpected, of the wrong shape or not finite; it lists all of them.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict

    wanted = flatten_dict(dict(expected), sep="/")
    found = {name: np.asarray(x) for name, x in flatten_dict(dict(arrays), sep="/").items()}
    problems = _misfits(found, wanted, name_in_file)
    if problems:
        raise MisfitError(source, "; ".join(problems))
    # What is float32 already stays a view: the weights of a large tower are more than a gigabyte.
    leaves = {name: found[name].astype(np.float32, copy=False) for name in wanted}
    tree: Tree = unflatten_dict(leaves, sep="/")
    return tree


def _misfits(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, Any], name_in_file: Callable[[str], str]
) -> list[str]:
    """Lists the problems of arrays by kind, with their names in the file."""
    common = [name for name in wanted if name in found]
    misshapen = [name for name in common if found[name].shape != tuple(wanted[name].shape)]
    # A sum is not finite when a term is not, and needs no second array as large as the weights.
    broken = [
        name for name in common if not math.isfinite(float(np.sum(found[name], dtype=np.float32)))
    ]
    missing = dict.fromkeys(name_in_file(name) for name in wanted if name not in found)
    unexpected = {name_in_file(name): name for name in found if name not in wanted}
    kinds = [
        _listed("missing", [name for name in missing if name not in unexpected]),
        _listed("unexpected", [name for name in unexpected if name not in missing]),
        _listed(
            "of the wrong shape",
            [
                f"{name} {found[name].shape}, expected {tuple(wanted[name].shape)}"
                if (own := name_in_file(name)) == name
                else f"{own} (here {name}) {found[name].shape}, expected {tuple(wanted[name].shape)}"
                for name in misshapen
            ]
            # The wrong number of values to be split into the arrays that are made of it.
            + [f"{own} {found[unexpected[own]].shape}" for own in missing if own in unexpected],
        ),
        _listed("not finite", list(dict.fromkeys(map(name_in_file, broken)))),
    ]
    return [kind for kind in kinds if kind]


def read_torch_pickle(path: PathLike) -> Any:
    """Reads a PyTorch zip archive (`.pth`, `.pt`) without PyTorch and without executing anything.

    Only plain containers, tensors, parameters, parameter lists and the modules of TorchScript are supported.

    Returns:
      Nested dicts, lists and tuples with numpy arrays. A ParameterList becomes a list, a module of TorchScript
      the dict of its attributes, bfloat16 float32.

    Raises:
      UserError: the file is missing or damaged, or refers to anything else.
    """
    path = _existing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
            if len(names) != 1:
                raise ValueError("it has no data.pkl")
            with archive.open(names[0]) as file:
                unpickler = _TorchUnpickler(file, archive, names[0].removesuffix("data.pkl"))
                return _plain(unpickler.load())
    except _Refused as error:
        raise UserError(
            f"{path} refers to {error}, which could run foreign code. Use a file that holds tensors only, or"
            " convert it to npz."
        ) from error
    except Exception as error:  # bytes that are not a whole pickle raise errors of nearly all kinds
        raise UserError(
            f"{path} is not a readable PyTorch archive ({_reason(error)})."
            " Delete it and fetch it again."
        ) from error


def _existing(path: PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a weight file was expected. Pass a file.")
    if not path.exists():
        raise UserError(f"{path} does not exist. Pass the path of a weight file, or fetch it.")
    return path


def _is_safetensors(path: pathlib.Path) -> bool:
    """Looks for a length and the "{" of a header; the name decides for a damaged file."""
    with open(path, "rb") as file:
        start = file.read(9)
    # Eight bytes of length precede the JSON header; an npz is a zip, which begins with PK.
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith(b"PK"))


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
    with archive:
        # A PyTorch archive is a zip too, which numpy opens without complaint.
        if any(name.split("/")[-1] == "data.pkl" for name in archive.files):
            raise UserError(
                f"{path} is a PyTorch archive, which may contain code. Convert it with"
                f" `python -m zsad_jax.backbones convert {path}`."
            )
        return {name: _as_float32(archive[name]) for name in archive.files}


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            # One by one, so that memory holds no second copy in the file's own type.
            return {name: _as_float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:  # the last two: unknown types
        raise ValueError(str(error)) from error


def _as_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how numpy stores bfloat16
        array = array.view(ml_dtypes.bfloat16)
    is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return array.astype(np.float32, copy=False) if is_float else array


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:NAMES_SHOWN])}{more}" if names else ""


def _reason(error: BaseException) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    # NumPy takes any other file for a pickle, and advises to load it unsafely.
    return "its format is unknown" if "allow_pickle" in reason else reason


class _Refused(pickle.UnpicklingError):
    """A pickle refers to something that is not known to be harmless."""


class _Module:
    """Stand-in for a module of TorchScript while a pickle is read; the state is its attributes."""

    state: Mapping[str, Any] | None = None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _ParameterList(_Module):
    """Stand-in for torch.nn.ParameterList."""


def _rebuild_tensor(
    values: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """Returns the tensor of this offset, size and stride (in elements) in a storage."""
    # as_strided checks nothing: a crafted file could read other memory.
    if len(size) != len(stride) or min((0, offset, *size, *stride)) < 0:
        raise ValueError("a tensor has a broken shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(values):
        raise ValueError("a tensor reaches beyond its storage")
    steps = tuple(step * values.itemsize for step in stride)
    view = np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)
    # A copy, since the view is read-only and would keep the whole storage in memory.
    return _as_float32(view) if values.dtype == ml_dtypes.bfloat16 else np.array(view)


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
_HARMLESS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.nn.modules.container", "ParameterList"): _ParameterList,
}


class _TorchUnpickler(pickle.Unpickler):
    """An unpickler of tensors and containers only."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file, encoding="utf-8")
        self._archive, self._folder = archive, folder
        self._storages: dict[str, np.ndarray] = {}  # tensors may share one
        order = f"{folder}byteorder"
        self._big_endian = order in archive.namelist() and archive.read(order).strip() == b"big"

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a global name, or raises an error."""
        # Nothing is looked up by the name in the file: known names have stand-ins, all others end the reading.
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return name
        if (
            module.partition(".")[0] == "__torch__"
        ):  # TorchScript keeps the code of its classes elsewhere
            return _Module
        if (module, name) not in _HARMLESS:
            raise _Refused(f"{module}.{name}")
        return _HARMLESS[module, name]

    def persistent_load(self, key: Any) -> np.ndarray:
        """Returns the storage of a tensor; tensors may share one."""
        if not (isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage"):
            raise _Refused(repr(key))
        # ("storage", type, file below data/, device, number of values)
        kind, name, count = key[1], str(key[2]), key[4]
        if name not in self._storages:
            dtype = np.dtype(_STORAGES[kind])
            values = np.frombuffer(self._archive.read(f"{self._folder}data/{name}"), dtype)
            if len(values) != count:
                raise ValueError(f"storage {name} has {len(values)} values instead of {count}")
            self._storages[name] = values.byteswap() if self._big_endian else values
        return self._storages[name]


def _plain(value: Any) -> Any:
    """Converts nested containers to plain dicts, lists and tuples."""
    if isinstance(value, _ParameterList):
        parameters = (value.state or {}).get("_parameters", {})
        # The keys are "0", "1", ...: sorted as text, "10" would precede "2".
        return [_plain(parameters[key]) for key in sorted(parameters, key=int)]
    if isinstance(value, _Module):
        return _plain(value.state or {})
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    return value
