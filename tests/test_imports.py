"""Imports: light, in one direction, and never another framework."""

import ast
import json
import pathlib
import subprocess
import sys

import zsad_jax

PACKAGE = pathlib.Path(zsad_jax.__file__).parent
ROOMS = ("data", "backbones", "methods", "metrics", "report")
# What every room may use; these know no room.
COMMON = {"downloads", "errors", "files", "progress"}
FRAMEWORKS = {"tensorflow", "torch", "torchvision", "transformers", "keras"}
LATER = {"cv2", "grain", "matplotlib", "orbax", "scipy", "sentencepiece", "sklearn", "tqdm"} | {
    "array_record",
    "nibabel",
    "tensorboardX",
    "tensorflow_datasets",
}
LONGEST_MODULE = 450

IMPORT_ALL = """
import importlib, json, pathlib, sys, time
start = time.perf_counter()
import jax
middle = time.perf_counter()
import zsad_jax
seconds = time.perf_counter() - middle
first = sorted(sys.modules)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
second = sorted(sys.modules)
from zsad_jax.data import builders
print(json.dumps([middle - start, seconds, first, second, sorted(sys.modules)]))
"""


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name):
    """The modules that a module imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {one if one in MODULES else node.module for one in inside}
    return names


def room(name):
    """The room of a module; its own name for a module above or beside the rooms."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_the_package_is_light():
    # These need tensorflow-datasets itself, when they are imported.
    heavy = ("zsad_jax.data.builders", "zsad_jax.data.inspection")
    light = [one for one in MODULES if not one.startswith(heavy) and "__main__" not in one]
    assert {f"zsad_jax.{one}" for one in ("main", "predict", *ROOMS)} <= set(light)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(light)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    jax_seconds, seconds, *loaded = json.loads(done.stdout)
    print(f"import jax {jax_seconds:.2f} s, import zsad_jax {seconds:.3f} s more")
    alone, modules, with_benchmarks = ({name.split(".")[0] for name in one} for one in loaded)
    assert "zsad_jax" in alone
    assert not alone & (LATER | FRAMEWORKS | {"flax", "optax"})
    assert not modules & (LATER | FRAMEWORKS)
    assert "tensorflow_datasets" in with_benchmarks
    assert not with_benchmarks & FRAMEWORKS


def rooms_used(name):
    """The rooms, and modules beside the rooms, that a module of the package imports."""
    ours = {one for one in imported(name) if one.split(".")[0] == "zsad_jax"}
    return {room(one) for one in ours}


def test_no_module_imports_another_framework():
    used = {name: {one.split(".")[0] for one in imported(name)} & FRAMEWORKS for name in MODULES}
    assert not {name: which for name, which in used.items() if which}


def test_rooms_import_leftwards():
    wrong = {}
    for name in MODULES:
        if room(name) in ROOMS and not name.endswith("__main__"):  # a command sits above the rooms
            left = {*ROOMS[: ROOMS.index(room(name)) + 1]}
            wrong[name] = rooms_used(name) - left - COMMON
    assert {room(name) for name in wrong} == set(ROOMS)
    assert not {name: which for name, which in wrong.items() if which}


def test_common_modules_know_no_room():
    wrong = {name: rooms_used(f"zsad_jax.{name}") - COMMON for name in COMMON}
    assert not {name: which for name, which in wrong.items() if which}


def test_modules_are_short():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
