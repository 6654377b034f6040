"""What holds for every test: the CPU, and a cache directory of the test's own."""

import os

os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
)  # before jax is imported: tests never wait for a device

import pytest


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
