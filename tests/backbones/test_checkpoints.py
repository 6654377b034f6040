import collections
import json
import pathlib
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

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
    with pytest.raises(
        UserError, match=r"weights\.safetensors is not a readable file.*fetch it again"
    ):
        read.read_arrays(path)
    assert read.find_damage(path)


def test_reads_npz_with_other_suffix(tmp_path):
    with open(tmp_path / "weights.safetensors", "wb") as file:
        np.savez(file, a=np.arange(3.0))
    assert read.read_arrays(tmp_path / "weights.safetensors")["a"].dtype == np.float32


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
        assert read.find_damage(path) == "it is not a complete npz, safetensors or PyTorch file"


def test_rejects_single_array(tmp_path):
    path = tmp_path / "weights.npz"
    with path.open("wb") as file:
        np.save(file, np.arange(3.0))
    with pytest.raises(UserError, match="its format is unknown"):
        read.read_arrays(path)


def test_reports_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz does not exist"):
        read.read_arrays(tmp_path / "none.npz")
    with pytest.raises(UserError, match="is a folder"):
        read.read_arrays(tmp_path)


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


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_fit_tree_rejects_weights_that_are_not_floating_point(dtype):
    wanted = {"scale": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(UserError, match="1 not floating-point: scale"):
        read.fit_tree({"scale": np.ones(2, dtype)}, wanted, source="x.npz")


def test_fit_tree_accepts_finite_weights_whose_sum_is_not():
    wanted = {"scale": jax.ShapeDtypeStruct((9,), np.float32)}
    found = read.fit_tree({"scale": np.full(9, 3e38, np.float32)}, wanted, source="x.npz")
    assert found["scale"].max() == np.float32(3e38)


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
    result = read.read_arrays(path)
    assert result.keys() == {"plain", "transposed", "tail.0", "scalar.0", "nothing"}
    np.testing.assert_array_equal(result["plain"], values.reshape(3, 4))
    np.testing.assert_array_equal(result["transposed"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(result["tail.0"], [10, 11])
    assert result["scalar.0"] == 5
    assert result["nothing"].shape == (0,)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", np.float64),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
def test_reads_all_storage_types(tmp_path, kind, dtype):
    values = np.array([0, 1, 1], dtype)
    path = write_archive(tmp_path / "a.pth", [tensor(kind, "0", 3, 0, (3,), (1,))], {"0": values})
    is_float = kind[0] in "DHB" and dtype not in (np.uint8, np.bool_)
    for keep_types in (False, True):
        result = read.read_arrays(path, keep_types=keep_types)["0"]
        assert result.dtype == (np.float32 if is_float and not keep_types else dtype)
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
    result = read.read_arrays(path)
    np.testing.assert_array_equal(result["0"], [0, 1])
    np.testing.assert_array_equal(result["1"], [2, 3])


@pytest.mark.parametrize(
    "function", ["os system", "posix system", "builtins eval", "builtins getattr", "torch load"]
)
def test_rejects_pickle_with_calls_without_running_it(tmp_path, function):
    witness = tmp_path / "witness"
    path = write_archive(tmp_path / "a.pth", [Call(function, f"touch {witness}")], {})
    with pytest.raises(UserError, match=function.replace(" ", r"\.")):
        read.read_arrays(path)
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
        (0, (1 << 28,), (0,)),
        (0, (2.0,), (1,)),
    ],
)
def test_rejects_tensor_beyond_its_storage(tmp_path, offset, size, stride):
    value = [tensor("FloatStorage", "0", 4, offset, size, stride)]
    path = write_archive(tmp_path / "a.pth", value, {"0": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match=r"storage|shape"):
        read.read_arrays(path)


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
        with pytest.raises(UserError, match=rf"{name} is not a readable file"):
            read.read_arrays(tmp_path / name)


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
STORED = tensor("FloatStorage", "0", 6, 0, (2, 3), (3, 1))


def test_asks_to_save_old_format_again(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps({}))
    with pytest.raises(
        UserError, match=r"format before 1\.6\. Load it with PyTorch and save it again\.$"
    ):
        read.read_arrays(path)


@pytest.mark.parametrize(
    "content",
    [
        {"ctx": STORED},
        {"module.ctx": STORED},
        {"state_dict": {"ctx": STORED}, "optimizer": {"state": {0: {"momentum": STORED}}}},
        {"model": {"state_dict": {"module.ctx": STORED}}, "epoch": 50},
        {"state_dict": collections.OrderedDict(ctx=STORED), "val_result": np.float64(0.91)},
        {"ctx": STORED, "args": Call("argparse Namespace"), "size": Call("torch Size", (2, 3))},
        {"state_dict": {"ctx": STORED}, "scheduler": Call("torch.optim.lr_scheduler CosineLR")},
        {"ctx": STORED, "state": Call("collections defaultdict", dict), "set": {1, 2}},
        {"net": {"_orig_mod.ctx": STORED}, "path": Call("pathlib PosixPath", "a", "b")},
        {
            "ctx": STORED,
            "at": Call("datetime datetime", b"0"),
            "n": Call("collections Counter", {}),
        },
        {"ctx": STORED, "z": tensor("ComplexFloatStorage", "1", 1, 0, (1,), (1,))},
    ],
)
@pytest.mark.parametrize("name", ["a.PTH", "model.pth.tar-50", "a.safetensors"])
def test_reads_arrays_of_training_scripts(tmp_path, content, name):
    path = write_archive(tmp_path / name, content, {"0": VALUES})
    [(found, array)] = read.read_arrays(path).items()
    assert found == "ctx"
    np.testing.assert_array_equal(array, VALUES)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_wrappers_are_removed_from_names_of_all_formats(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "npz":
        np.savez(path, **{"state_dict.module.a": VALUES})
    else:
        path.write_bytes(safetensors_bytes({"state_dict.module.a": ("F32", VALUES)}))
    assert list(read.read_arrays(path)) == ["a"]


def nested(kind, depth):
    """Returns a container that holds the one before it twice, so that a walk has 2^depth steps."""
    value = kind()
    for _ in range(depth):
        value = kind((value, value))
    return value


HOSTILE = {
    "shared lists": pickle.dumps(nested(list, 60), 2),
    "shared tuples as a key": pickle.dumps(nested(tuple, 60), 2)[:-1] + b"}q\xff" + b"K\x01s.",
    "a key of shared tuples": b"\x80\x02}" + pickle.dumps(nested(tuple, 60), 2)[2:-1] + b"K\x01s.",
    "a large memo index": b"\x80\x02]r\xff\xff\xff\x3f.",
    "a long byte array": b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "many parts": b"\x80\x02" + b"N" * (read.torch_file.MAX_STEPS + 1) + b".",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_end_quickly(tmp_path, name):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HOSTILE[name])
    try:
        assert read.read_arrays(path) == {}  # what cannot be the name of an array is ignored
    except UserError as error:
        assert "is not a readable file" in str(error)  # noqa: PT017


def write_npz_member(path, shape, dtype="'<f4'", content=bytes(16)):
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("a.npy", start + header + content)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"shape": "(1000000000000,)"}, "header of a.npy does not fit"),
        ({"shape": f"({10**23},)"}, "header of a.npy does not fit"),
        ({"shape": "(True, 4)"}, "not a readable file"),
        ({"shape": "(2, 3)"}, "header of a.npy does not fit"),
        ({"shape": "((((", "content": b""}, "not a readable file"),
        ({"shape": "(2,)", "dtype": "'|O'"}, "header of a.npy does not fit"),
        ({"shape": "(4,)", "content": bytes(2**26 + 2**21)}, "more than the limit"),
    ],
)
def test_reports_headers_of_npz_that_do_not_fit(tmp_path, member, words):
    path = tmp_path / "a.npz"
    write_npz_member(path, **member)
    with pytest.raises(UserError, match=words):
        read.read_arrays(path)


@pytest.mark.parametrize("dtype", ["'<U4'", "'<M8[s]'", "[('x', '<f8')]", "'<c8'"])
def test_ignores_arrays_that_are_not_real_numbers(tmp_path, dtype):
    count = 16 // np.dtype(eval(dtype)).itemsize
    write_npz_member(tmp_path / "a.npz", f"({count},)", dtype)
    assert read.read_arrays(tmp_path / "a.npz") == {}


def test_limits_size_of_all_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", a=VALUES)
    write_archive(tmp_path / "a.pth", [STORED], {"0": VALUES})
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"a": ("F32", VALUES)}))
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="more than the limit of 23"):
            read.read_arrays(path, max_bytes=VALUES.nbytes - 1)


@pytest.mark.skipif(not SHARED_WEIGHTS.is_dir(), reason="the shared weights are not available")
def test_published_archives_equal_their_npz_copies():
    paths = [*SHARED_WEIGHTS.glob("tipsomaly/*/*.pth"), *SHARED_WEIGHTS.glob("crane/**/*.pth")]
    assert paths
    for path in paths:
        arrays = read.read_arrays(path)
        with np.load(path.with_suffix(".npz")) as twin:
            copies = read.unwrapped(twin)
        assert set(arrays) == set(copies)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, copies[name])
