"""Reads weight files: types, names, shapes and sizes are checked, and nothing in a file is ever executed."""

import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from zsad_jax.backbones.checkpoints import torch_file
from zsad_jax.utils.arrays import is_real
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

Tree = dict[str, Any]  # nested dicts with arrays as leaves
Arrays = Mapping[str, np.ndarray]  # by name
Reader = Callable[[pathlib.Path, int], Iterator[tuple[str, np.ndarray]]]
NAMES_SHOWN = 20
# Weights hardly compress: a file that holds many times its own size was made to fill the memory.
MAX_RATIO, SMALL = 16, 2**26
# What training scripts and modules put around the names of arrays.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "params_ema"),
    *("dinov2", "dinov2_with_registers", "siglip", "learnable_prompts"),
)
INSIDE = {"module", "_orig_mod", "_parameters", "_buffers", "_modules"}
OLD_START = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(
    path: PathLike, *, max_bytes: int | None = None, keep_types: bool = False
) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz, safetensors or PyTorch file by name.

    The content decides the format. Two-byte arrays without a type are read as bfloat16, which numpy lacks.
    Pickled objects of npz files are rejected; those of PyTorch files, and arrays that hold no real numbers, are
    ignored. The names lose what training scripts put around them ("state_dict.", "module.").

    Args:
      path: the file.
      max_bytes: limit of the size of all arrays; None: about 16 times the size of the file.
      keep_types: keeps the types of floating-point arrays, which otherwise become float32.

    Raises:
      UserError: the file is missing, damaged or not a file of plain arrays, or its arrays are too large.
    """
    path = _existing(path)
    # Damaged and foreign bytes raise errors of nearly all kinds, wherever they are read.
    try:
        stored = _reader(path)(path, max_bytes or MAX_RATIO * path.stat().st_size + SMALL)
        with np.errstate(over="ignore"):  # infinity is reported with the names of the arrays
            typed = ((name, _typed(one, keep_types)) for name, one in stored)
            return unwrapped({name: one for name, one in typed if is_real(one.dtype)})
    except UserError:
        raise
    except torch_file.RefusedError as error:
        raise UserError(
            f"{path} refers to {error}, which could run foreign code. Use a file of tensors only, or npz."
        ) from error
    except Exception as error:
        raise UserError(
            f"{path} is not a readable file of plain arrays ({_reason(error)}). Pass a weight file or, if it"
            " was downloaded, delete it and fetch it again."
        ) from error


def unwrapped(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays by names without what training scripts and modules put around them."""
    found = {
        ".".join(part for part in name.split(".") if part not in INSIDE): array
        for name, array in arrays.items()
    }
    for wrapper in WRAPPERS * 2:  # one may be inside of another
        prefix = f"{wrapper}."
        inner = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        found = inner or found
    return found


def find_damage(path: pathlib.Path) -> str:
    """Returns why a file is not a complete weight file, "" if it is one; reads no arrays."""
    from safetensors import safe_open

    try:
        # The header of safetensors gives the length of the file; zips (npz, PyTorch) end with a table of
        # contents.
        with safe_open(path, "numpy") if _is_safetensors(path) else zipfile.ZipFile(path):
            return ""
    except Exception:  # as in `read_arrays`
        return "it is not a complete npz, safetensors or PyTorch file"


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
      name_in_file: returns the name of an array in the file, of which it may be a part, for the error.

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
    other = [name for name in common if not _is_float(found[name])]
    broken = [name for name in common if name not in other and not np.isfinite(found[name]).all()]
    missing = dict.fromkeys(name_in_file(name) for name in wanted if name not in found)
    # Training scripts store numbers beside the weights, such as the epoch.
    others = [name for name in found if name not in wanted and _is_float(found[name])]
    unexpected = {name_in_file(name): name for name in others}
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
        _listed("not floating-point", [f"{name_in_file(n)} ({found[n].dtype})" for n in other]),
        _listed("not finite", list(dict.fromkeys(map(name_in_file, broken)))),
    ]
    return [kind for kind in kinds if kind]


def _existing(path: PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a weight file was expected. Pass a file.")
    if not path.exists():
        raise UserError(f"{path} does not exist. Pass the path of a weight file, or fetch it.")
    return path


def _is_safetensors(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length precede the JSON header


def _reader(path: pathlib.Path) -> Reader:
    """Returns the reader of the format that the content shows."""
    if _is_safetensors(path):
        return _read_safetensors
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            if file.read(len(OLD_START)) == OLD_START:
                raise UserError(
                    f"{path} has PyTorch's format before 1.6. Load it with PyTorch and save it again."
                )
        raise ValueError("its format is unknown")
    with zipfile.ZipFile(path) as archive:
        is_torch = any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())
    return _read_torch if is_torch else _read_npz


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"its arrays take {size} bytes, more than the limit of {limit}")


def _read_npz(path: pathlib.Path, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_size(sum(member.file_size for member in members), limit)
        for member in members:
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                shape, by_column, dtype = HEADERS[version](file)
                # numpy would allocate what the header says, and run what an array of objects says.
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or size != member.file_size - file.tell():
                    raise ValueError(f"the header of {member.filename} does not fit its content")
                array = np.frombuffer(file.read(), dtype)
            order: Any = "F" if by_column else "C"
            yield member.filename.removesuffix(".npy"), array.reshape(shape, order=order)


def _read_safetensors(path: pathlib.Path, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import safe_open

    _check_size(path.stat().st_size, limit)
    with safe_open(path, framework="numpy") as file:
        # One by one, so that memory holds no second copy in the file's own type.
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def _read_torch(path: pathlib.Path, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    def select(tensors: torch_file.Tensors) -> torch_file.Tensors:
        wanted = unwrapped(tensors)  # the state of an optimizer is not read
        _check_size(sum(tensor.nbytes for tensor in wanted.values()), limit)
        return wanted

    return torch_file.read_tensors(path, select)


def _typed(array: np.ndarray, keep_type: bool) -> np.ndarray:
    """Returns an array, a floating-point one as float32 unless its type is kept."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how numpy stores bfloat16
        array = array.view(ml_dtypes.bfloat16)
    return array if keep_type or not _is_float(array) else array.astype(np.float32, copy=False)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:NAMES_SHOWN])}{more}" if names else ""


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
