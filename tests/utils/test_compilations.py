"""Tests of compiled programs on disk."""

import os

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from zsad_jax.utils import compilations

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def default_settings(monkeypatch):
    """Starts without the user's settings, and restores them."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setattr(compilations, "SHORTEST_S", 0.0)
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def compute():
    return jax.jit(lambda x: x * 3 + 1)(2)  # a new function, which is compiled or read


def test_second_run_reads_what_the_first_compiled(home):
    compilations.store()
    compute()
    [program] = (home / "xla").glob("*-cache")
    jax.clear_caches()
    events = []

    def note(name, **_):
        events.append(name)

    jax.monitoring.register_event_listener(note)
    compute()
    jax.monitoring.unregister_event_listener(note)
    assert "/jax/compilation_cache/cache_hits" in events
    assert [*(home / "xla").glob("*-cache")] == [program]


def test_damaged_program_is_compiled_again(home):
    compilations.store()
    compute()
    for program in (home / "xla").glob("*-cache"):
        program.write_bytes(program.read_bytes()[:-9])
    jax.clear_caches()
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert compute() == 7


def test_settings_of_the_user_have_precedence(home, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    compilations.store()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 5
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilations.store()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_stores_nothing_in_a_directory_without_permission(home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    compilations.store()
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(home.iterdir())


def test_removes_least_recently_used_programs(home, monkeypatch):
    monkeypatch.setattr(compilations, "MAX_BYTES", 250)
    (home / "xla").mkdir()
    for number, name in enumerate(["used", "old", "new"]):
        path = home / "xla" / f"{name}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (number + 9 * (name == "used"), number))
    compilations.store()
    assert {path.name for path in (home / "xla").iterdir()} == {"used-cache", "new-cache"}
