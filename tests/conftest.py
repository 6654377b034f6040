"""Fixtures and settings shared by all tests: CPU, fast compilation, a private cache directory, logging."""

import contextlib
import gc
import importlib.util
import logging as python_logging
import mmap
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import warnings

import pytest
from absl import logging

# Compilation dominates the run time of the tests, and the compiled code runs only briefly.
QUICK_FLAGS = {
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def known_flags():
    """Returns the `QUICK_FLAGS` known to this jaxlib, because XLA aborts on unknown flags."""
    (package,) = importlib.util.find_spec("jaxlib").submodule_search_locations
    known = []
    for library in pathlib.Path(package).glob("libjax_common.*"):
        with (
            open(library, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            # A name between zeros is that of a flag; former names are only in tables of reserved ones.
            known += [name for name in QUICK_FLAGS if text.find(f"\0{name}\0".encode()) >= 0]
    return [f"--{name}={QUICK_FLAGS[name]}" for name in known]


# Set before jax is imported, here and in subprocesses, so that tests never wait for an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # those of tests are long
# What one process compiles, the others read: the workers of a session and the commands that tests run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
given = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*(flag for flag in known_flags() if flag not in given), *given])


LONGEST = ("test_switches.py", "test_combinations.py", "test_main.py", "test_faprompt.py")


def pytest_collection_modifyitems(items):
    """Moves the slowest files to the front, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_ignore_collect(collection_path, config):
    """Ignores files of parity tests that are deselected: their imports take seconds."""
    ignored = "not parity" in config.option.markexpr and collection_path.match("*_parity.py")
    return ignored or None


def pytest_collection_finish():
    """Excludes what is imported, which stays, from later searches for garbage, and makes these rarer."""
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)


@pytest.fixture
def set_fallback_fonts(monkeypatch):
    """Returns a function that sets the fonts that pictures fall back on."""
    from zsad_jax.utils import images

    def choose(*names):
        monkeypatch.setattr(images, "FALLBACK_FONTS", names)
        images.fallback_font.cache_clear()

    yield choose
    images.fallback_font.cache_clear()


@pytest.fixture(scope="session")
def run_app():
    """Returns a function that runs a command with absl's flags as a shell would; it returns the exit code."""
    import grain  # noqa: F401 - defines flags, which must outlive the restored ones
    from absl import flags
    from absl.testing import flagsaver

    from zsad_jax.experiment import config_flag
    from zsad_jax.utils import command_line

    def run(main, module, argv):
        with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(), same_logging():
            patch.setattr("sys.argv", argv)
            flags.FLAGS.unparse_flags()
            try:
                return command_line.guarded(lambda: main(config_flag.flags_parser(module)(argv)))
            except SystemExit as ended:  # of an error, and of --help
                return ended.code

    return run


@pytest.fixture(scope="session")
def included_experiment():
    """Reads the experiment of `configs/<method>.py`, without a variant."""

    def read(method):
        from zsad_jax.experiment.config import from_config

        path = pathlib.Path(__file__).parents[1] / "configs" / f"{method}.py"
        return from_config(runpy.run_path(str(path))["get_config"]())

    return read


# Learned arrays that shift all keys or all logits of a softmax equally: their gradient is zero up to
# rounding.
NO_EFFECT = {
    "tps": {
        "['pathway']['attentions']['to_patches']['key']['bias']",
        "['pathway']['attentions']['to_global']['key']['bias']",
        "['pathway']['norms']['global']['bias']",
    },
    "vip2clip": {"['fgp']['key']['bias']"},
    # The bias of the filter adds a number to all features of a token, which the norms subtract again.
    "vcpclip": {"['attention']['key']['bias']", "['filter']['bias']"},
}


@pytest.fixture(scope="session")
def largest_entries():
    """Returns the largest absolute entry of each learned array by name, for arrays with an effect."""
    import jax
    import numpy as np

    def find(method, tree):
        found = {
            jax.tree_util.keystr(path): float(np.abs(leaf).max())
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        idle = NO_EFFECT.get(method, set())
        assert idle <= set(found)
        return {name: value for name, value in found.items() if name not in idle}

    return find


@pytest.fixture(scope="session")
def user_environment():
    """Returns the environment of commands that are compiled with the user's settings and then run faster."""
    variables = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    quick = known_flags()
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if flag not in quick]
    return variables | {"XLA_FLAGS": " ".join(flags)}


@pytest.fixture(scope="session")
def run_on_eight_devices():
    """Returns a function that runs a script on eight simulated devices and returns what it prints."""

    def run(script, *arguments, **variables):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | variables,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(autouse=True, scope="session")
def session_home(tmp_path_factory):
    """Sets a cache directory for fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSAD_JAX_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Sets a private cache directory, so that no test reads or changes the user's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZSAD_JAX_HOME", str(folder))
    return folder


@contextlib.contextmanager
def same_logging():
    """Restores the settings of logging and warnings that a command changes for its process."""
    logger, root, of_jax = (
        logging.get_absl_logger(),
        python_logging.getLogger(),
        python_logging.getLogger("jax"),
    )
    verbosity, level = logging.get_verbosity(), of_jax.level
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        for one in (logger, root):
            patch.setattr(one, "handlers", one.handlers)
        patch.setattr(logger, "propagate", logger.propagate)
        yield
    logging.set_verbosity(verbosity)
    of_jax.setLevel(level)


@pytest.fixture(autouse=True)
def restore_logging():
    with same_logging():
        yield
