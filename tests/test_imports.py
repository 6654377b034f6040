"""Tests of imports: fast, in the order of the packages, acyclic, and without other frameworks."""

import ast
import functools
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

import zsad_jax

PACKAGE = pathlib.Path(zsad_jax.__file__).parent
# A module imports only from parts of the package that precede its own; see README, "Architecture".
ORDER = (
    *("utils", "metrics", "data", "backbones", "methods", "train", "evaluate", "detector"),
    *("report", "experiment", "predict", "main"),
)
LONGEST_CHAIN = 11
FRAMEWORKS = {"tensorflow", "torch", "torchvision", "transformers", "keras"}
LATER = {"cv2", "grain", "matplotlib", "orbax", "scipy", "sentencepiece", "sklearn", "tqdm"} | {
    "array_record",
    "jinja2",
    "nibabel",
    "tensorboardX",
    "tensorflow_datasets",
}

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
import zsad_jax.data.benchmarks.builders
zsad_jax.report.curves.CurveWriter(sys.argv[2]).close()
print(json.dumps([middle - start, seconds, first, second, sorted(sys.modules)]))
"""


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name):
    """Returns the modules that a module imports, including imports inside functions."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {one if one in MODULES else node.module for one in inside}
    return names


def part(name):
    """Returns the top-level package or module that a module belongs to."""
    return name.split(".")[1]


def parts_used(names):
    """Returns the parts of the package that modules import, except their own and `__version__`."""
    ours = {one for name in names for one in imported(name) if one.startswith("zsad_jax.")}
    return {part(one) for one in ours} - {part(name) for name in names}


def is_command(name):
    """Returns whether a module is a command, which may import any part."""
    return name.endswith("__main__")


def test_top_level_has_five_modules():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "main", "train", "evaluate", "detector"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages | modules - {"__init__"} == set(ORDER)


def test_package_is_light(tmp_path):
    # Importing these requires tensorflow-datasets.
    heavy = [f"zsad_jax.data.benchmarks.{one}" for one in ("builders", "prepared", "shards")]
    light = [one for one in MODULES if one not in heavy and not is_command(one)]
    assert {f"zsad_jax.{one}" for one in ORDER} <= set(light)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(light), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    jax_seconds, seconds, *loaded = json.loads(done.stdout)
    print(f"import jax {jax_seconds:.2f} s, import zsad_jax {seconds:.3f} s more")
    alone, modules, at_work = ({name.split(".")[0] for name in one} for one in loaded)
    assert "zsad_jax" in alone
    assert not alone & (LATER | FRAMEWORKS | {"flax", "optax"})
    assert not modules & (LATER | FRAMEWORKS)
    assert {"tensorflow_datasets", "tensorboardX"} <= at_work
    assert not at_work & FRAMEWORKS


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("data", ["list"]),
        ("data", ["list", "--categories"]),
        ("data", ["--help"]),
        ("backbones", ["list"]),
        ("backbones", ["--help"]),
    ],
)
def test_command_is_light(command, arguments, tmp_path):
    script = (
        "import json, runpy, sys, time\n"
        "start = time.perf_counter()\n"
        "try:\n"
        f"    runpy.run_module('zsad_jax.{command}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))\n"
    )
    folder = ["--data_dir", tmp_path] if (command, arguments[0]) == ("data", "list") else []
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, *folder],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    print(f"python -m zsad_jax.{command} {arguments[0]}: {seconds:.2f} s")
    loaded = {name.split(".")[0] for name in modules}
    assert "numpy" in loaded
    assert not loaded & (FRAMEWORKS | {"jax", "flax", "optax", "tensorflow_datasets", "grain"})


def test_no_module_imports_another_framework():
    used = {name: {one.split(".")[0] for one in imported(name)} & FRAMEWORKS for name in MODULES}
    assert not {name: which for name, which in used.items() if which}


def test_parts_import_from_parts_before_them():
    """Excludes cycles between parts, together with the fixed order."""
    wrong = {}
    for name in MODULES:
        if name != "zsad_jax" and not is_command(name):
            before = set(ORDER[: ORDER.index(part(name))])
            wrong[name] = parts_used([name]) - before
    assert len(wrong) > 100
    assert not {name: which for name, which in wrong.items() if which}


def test_longest_chain_of_parts():
    modules = {
        one: [name for name in MODULES if f"{name}.".startswith(f"zsad_jax.{one}.")]
        for one in ORDER
    }

    @functools.cache
    def chain(one):
        used = parts_used([name for name in modules[one] if not is_command(name)])
        return 1 + max(map(chain, used & set(ORDER)), default=0)

    assert 5 < max(map(chain, ORDER)) <= LONGEST_CHAIN


def test_modules_import_without_cycles():
    """Checks that modules within a part do not import one another in a cycle either."""
    graph = {name: imported(name) & set(MODULES) for name in MODULES if name != "zsad_jax"}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"cycle: {path[path.index(name) :]}"
        if name not in done:
            path.append(name)
            for one in sorted(graph.get(name, ())):
                visit(one)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=str)
def test_package_lists_its_public_names(path):
    name = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    package = importlib.import_module(name)
    assert len(set(package.__all__)) == len(package.__all__) > 0
    for public in package.__all__:
        assert hasattr(package, public) or importlib.import_module(f"{name}.{public}")


def test_public_names_are_imported_on_use():
    code = (
        "import zsad_jax; zsad_jax.methods.METHODS; zsad_jax.metrics.compute; zsad_jax.presets.paper;"
        " assert {*dir(zsad_jax)} == {*zsad_jax.__all__, '__version__'};"
        " [getattr(zsad_jax, name) for name in zsad_jax.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
