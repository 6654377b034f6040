import collections
import json
import pathlib
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from zsad_jax.backbones.checkpoints import read
from zsad_jax.utils.errors import UserError

SHARED_WEIGHTS = pathlib.Path(__file__).parents[3] / "shared" / "weights"


def fake(module, name, base=object):
    """Returns a class that pickles as module.name without such a module being installed."""
    return type(name, (base,), {"__module__": module})


class Call:
    """An object that pickles as a call of `function` (given as 'module name') with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Stored:
    """An object that pickles as a persistent reference to a storage."""

    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class ParameterList:
    def __init__(self, tensors):
        self.tensors = tensors


class TorchPickler(pickle._Pickler):
    """A pickler that writes torch's opcodes without torch."""

    def emit_global(self, name):
        self.write(pickle.GLOBAL + name.replace(" ", "\n").encode() + b"\n")

    def save(self, value, *args, **kwargs):
        if isinstance(value, Call):
            self.emit_global(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(value, Stored):
            self.write(pickle.MARK)
            super().save("storage")
            self.emit_global(f"torch {value.kind}")
            for item in (value.key, "cpu", value.count):
                super().save(item)
            self.write(pickle.TUPLE + pickle.BINPERSID)
        elif isinstance(value, ParameterList):
            self.emit_global("torch.nn.modules.container ParameterList")
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save({"training": True, "_parameters": value.tensors, "_size": len(value.tensors)})
            self.write(pickle.BUILD)
        else:
            super().save(value, *args, **kwargs)


def write_archive(path, value, storages, *, prefix="archive", byteorder=None):
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{prefix}/data.pkl", "w") as file:
            TorchPickler(file, 2).dump(value)
        for key, array in storages.items():
            archive.writestr(f"{prefix}/data/{key}", array.tobytes())
        if byteorder:
            archive.writestr(f"{prefix}/byteorder", byteorder)
    return path


def tensor(kind, key, count, offset, size, stride):
    hooks = collections.OrderedDict()
    storage = Stored(kind, key, count)
    return Call("torch._utils _rebuild_tensor_v2", storage, offset, size, stride, False, hooks)


def test_read_arrays_returns_float32(tmp_path):
    values = np.array([1.5, -2.0, 0.25], np.float32)
    np.savez(
        tmp_path / "weights.npz",
        single=values,
        half=values.astype(np.float16),
        double=values.astype(np.float64),
        brain=values.astype(ml_dtypes.bfloat16).view("V2"),
        count=np.arange(3),
    )
    arrays = read.read_arrays(tmp_path / "weights.npz")
    for name in ("single", "half", "double", "brain"):
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], values)
    assert arrays["count"].dtype.kind == "i"


def safetensors_bytes(arrays):
    """Returns a hand-written safetensors file: a length, a header, the values."""
    header, values = {}, b""
    for name, (kind, array) in arrays.items():
        offsets = [len(values), len(values) + array.nbytes]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
        values += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_read_arrays_detects_safetensors_by_content(tmp_path, suffix):
    values = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    held = {
        "single": ("F32", values),
        "half": ("F16", values.astype(np.float16)),
        "double": ("F64", values.astype(np.float64)),
        "brain": ("BF16", values.astype(ml_dtypes.bfloat16)),
        "count": ("I64", np.arange(3)),
        "scalar": ("F32", np.array(0.5, np.float32)),
    }
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(safetensors_bytes(held))
    arrays = read.read_arrays(path)
    assert arrays.keys() == held.keys()
    for name in ("single", "half", "double", "brain"):
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], values)
    np.testing.assert_array_equal(arrays["count"], np.arange(3))
    assert arrays["scalar"].shape == ()
    assert not read.find_damage(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"<html>404 not found</html>",
        lambda data: data.replace(b"F32", b"F99"),
        lambda data: data + b"more",
    ],
)
def test_reports_broken_safetensors_file_and_remedy(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damage(safetensors_bytes({"a": ("F32", np.zeros(4, np.float32))})))
    with pytest.raises(UserError, match=r"weights\.safetensors .* safetensors .*fetch it again"):
        read.read_arrays(path)
    assert read.find_damage(path)


def test_reads_npz_with_other_suffix(tmp_path):
    with open(tmp_path / "weights.safetensors", "wb") as file:
        np.savez(file, a=np.arange(3.0))
    assert read.read_arrays(tmp_path / "weights.safetensors")["a"].dtype == np.float32


def test_asks_to_convert_torch_archive(tmp_path):
    path = write_archive(tmp_path / "ViT.pt", {}, {})
    with pytest.raises(UserError, match=r"python -m zsad_jax\.backbones convert .*ViT\.pt"):
        read.read_arrays(path)


def write_pickled(path):
    np.savez(path, evil=np.array([{"a": 1}], dtype=object))


def write_truncated(path):
    np.savez(path, a=np.arange(1000.0))
    path.write_bytes(path.read_bytes()[:2000])


def write_flipped(path):
    np.savez(path, a=np.arange(1000.0))
    data = bytearray(path.read_bytes())
    data[4000] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    "write",
    [
        write_pickled,
        write_truncated,
        write_flipped,
        lambda path: path.write_text("<html>404 not found</html>"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        lambda path: path.open("wb").write(b"\x93NUMPY"),
    ],
)
def test_reports_broken_npz_and_remedy(tmp_path, write):
    path = tmp_path / "weights.npz"
    write(path)
    with pytest.raises(UserError, match=r"weights\.npz .*fetch it again"):
        read.read_arrays(path)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_finds_damage_without_reading_arrays(tmp_path, suffix):
    path = tmp_path / "weights.part"
    if suffix == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.arange(1000.0))
    else:
        path.write_bytes(safetensors_bytes({"a": ("F64", np.arange(1000.0))}))
    data = path.read_bytes()
    assert read.find_damage(path) == ""
    for damaged in (data[:-1], data[:2000], b"", b"<html>404 not found</html>"):
        path.write_bytes(damaged)
        assert read.find_damage(path) == "it is not a complete npz or safetensors file"


def test_rejects_single_array(tmp_path):
    path = tmp_path / "weights.npz"
    with path.open("wb") as file:
        np.save(file, np.arange(3.0))
    with pytest.raises(UserError, match="single array"):
        read.read_arrays(path)


def test_reports_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz does not exist"):
        read.read_arrays(tmp_path / "none.npz")
    with pytest.raises(UserError, match="is a folder"):
        read.read_torch_pickle(tmp_path)


def expected_tree():
    return {
        "dense": {
            "kernel": jax.ShapeDtypeStruct((2, 3), np.float32),
            "bias": jax.ShapeDtypeStruct((3,), np.float32),
        },
        "scale": jax.ShapeDtypeStruct((), np.float32),
    }


def test_fit_tree_accepts_flat_and_nested_arrays():
    flat = {
        "dense/kernel": np.ones((2, 3), np.float16),
        "dense/bias": np.zeros(3),
        "scale": np.float32(2),
    }
    for arrays in (flat, unflatten_dict(flat, sep="/")):
        tree = read.fit_tree(arrays, expected_tree(), source="x.npz")
        assert jax.tree.map(np.shape, tree) == jax.tree.map(
            lambda leaf: leaf.shape, expected_tree()
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}


def test_fit_tree_lists_all_problems():
    arrays = {"dense": {"kernel": np.ones((3, 2)), "other": np.ones(1)}, "scale": np.float32("nan")}
    with pytest.raises(UserError) as raised:
        read.fit_tree(arrays, expected_tree(), source="x.npz")
    message = str(raised.value)
    assert "x.npz" in message
    assert "1 missing: dense/bias" in message
    assert "1 unexpected: dense/other" in message
    assert "dense/kernel (3, 2), expected (2, 3)" in message
    assert "1 not finite: scale" in message


def test_long_list_of_problems_is_truncated_with_count():
    arrays = {f"extra_{i:02}": np.zeros(1) for i in range(25)}
    with pytest.raises(UserError) as raised:
        read.fit_tree(arrays, {}, source="x.npz")
    assert "25 unexpected" in str(raised.value)
    assert "extra_19 and 5 more" in str(raised.value)


def test_tensors_respect_offset_stride_and_shared_storage(tmp_path):
    values = np.arange(12, dtype=np.float32)
    path = write_archive(
        tmp_path / "a.pth",
        {
            "plain": tensor("FloatStorage", "0", 12, 0, (3, 4), (4, 1)),
            "transposed": tensor("FloatStorage", "0", 12, 0, (4, 3), (1, 4)),
            "tail": [tensor("FloatStorage", "0", 12, 10, (2,), (1,))],
            "scalar": (tensor("FloatStorage", "0", 12, 5, (), ()), 7, "text", None),
            "nothing": tensor("FloatStorage", "0", 12, 12, (0,), (1,)),
        },
        {"0": values},
    )
    result = read.read_torch_pickle(path)
    np.testing.assert_array_equal(result["plain"], values.reshape(3, 4))
    np.testing.assert_array_equal(result["transposed"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(result["tail"][0], [10, 11])
    assert result["scalar"][0] == 5
    assert result["scalar"][1:] == (7, "text", None)
    assert result["nothing"].shape == (0,)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", np.float64),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
def test_reads_all_storage_types(tmp_path, kind, dtype):
    values = np.array([0, 1, 1], dtype)
    path = write_archive(tmp_path / "a.pth", [tensor(kind, "0", 3, 0, (3,), (1,))], {"0": values})
    (result,) = read.read_torch_pickle(path)
    assert result.dtype == (np.float32 if kind.startswith("BFloat") else dtype)
    np.testing.assert_array_equal(result, [0, 1, 1])


def test_reads_parameter_list_and_big_endian_values(tmp_path):
    values = np.arange(4, dtype=">f4")
    parameters = {
        str(i): Call(
            "torch._utils _rebuild_parameter",
            tensor("FloatStorage", "0", 4, 2 * i, (2,), (1,)),
            True,
            collections.OrderedDict(),
        )
        for i in range(2)
    }
    path = write_archive(
        tmp_path / "a.pth", ParameterList(parameters), {"0": values}, byteorder="big"
    )
    first, second = read.read_torch_pickle(path)
    np.testing.assert_array_equal(first, [0, 1])
    np.testing.assert_array_equal(second, [2, 3])


@pytest.mark.parametrize(
    "function", ["os system", "posix system", "builtins eval", "builtins getattr", "torch load"]
)
def test_rejects_pickle_with_calls_without_running_it(tmp_path, function):
    witness = tmp_path / "witness"
    path = write_archive(tmp_path / "a.pth", [Call(function, f"touch {witness}")], {})
    with pytest.raises(UserError, match=function.replace(" ", r"\.")):
        read.read_torch_pickle(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (-1, (1,), (1,)),
        (3, (2,), (-1,)),
        (0, (2, 2), (4, 1)),
        (0, (2,), ()),
    ],
)
def test_rejects_tensor_beyond_its_storage(tmp_path, offset, size, stride):
    value = [tensor("FloatStorage", "0", 4, offset, size, stride)]
    path = write_archive(tmp_path / "a.pth", value, {"0": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match=r"storage|shape"):
        read.read_torch_pickle(path)


def test_reports_damaged_archives(tmp_path):
    good = write_archive(
        tmp_path / "good.pth",
        [tensor("FloatStorage", "0", 4, 0, (4,), (1,))],
        {"0": np.zeros(4, np.float32)},
    )
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:150])
    (tmp_path / "old.pth").write_bytes(pickle.dumps([1]))
    short = write_archive(
        tmp_path / "short.pth",
        [tensor("FloatStorage", "0", 4, 0, (4,), (1,))],
        {"0": np.zeros(3, np.float32)},
    )
    with zipfile.ZipFile(tmp_path / "none.pth", "w") as archive:
        archive.writestr("a/data.txt", "")
    with zipfile.ZipFile(tmp_path / "noise.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"noise")
    for name in ("cut.pth", "old.pth", "none.pth", "noise.pth", short.name):
        with pytest.raises(UserError, match=rf"{name} is not a readable PyTorch archive"):
            read.read_torch_pickle(tmp_path / name)


@pytest.mark.skipif(not SHARED_WEIGHTS.is_dir(), reason="the shared weights are not available")
def test_published_archives_equal_their_npz_copies():
    paths = [*SHARED_WEIGHTS.glob("tipsomaly/*/*.pth"), *SHARED_WEIGHTS.glob("crane/**/*.pth")]
    assert paths
    for path in paths:
        result = read.read_torch_pickle(path)
        flat = (
            dict(enumerate(result)) if isinstance(result, list) else flatten_dict(result, sep="/")
        )
        arrays = {str(key).replace("/", "."): value for key, value in flat.items()}
        with np.load(path.with_suffix(".npz")) as twin:
            assert set(arrays) == set(twin.files)
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, twin[name])
