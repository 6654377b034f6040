"""What holds for every test: the CPU, a cache directory of its own, and logging as it was."""

import logging as python_logging
import os

os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
)  # before jax is imported: tests never wait for a device

import pytest
from absl import logging


@pytest.fixture(autouse=True, scope="session")
def home_of_the_session(tmp_path_factory):
    """Fixtures that outlive a test have a cache directory too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSAD_JAX_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """A cache directory of its own, so that no test sees or changes the user's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZSAD_JAX_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """What a command sets up for its process does not outlive the test that calls it."""
    logger, of_jax = logging.get_absl_logger(), python_logging.getLogger("jax")
    before = logger.handlers, logger.propagate, logging.get_verbosity(), of_jax.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logging.set_verbosity(before[2])
    of_jax.setLevel(before[3])
