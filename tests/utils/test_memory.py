"""Tests of the measurement of memory."""

import subprocess
import sys

import numpy as np

from zsad_jax.utils import memory
from zsad_jax.utils.memory import available_memory, peak_memory


def test_peak_memory_does_not_count_that_of_the_parent():
    large = np.ones(2**26)  # 512 MiB
    code = "from zsad_jax.utils.memory import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < large.nbytes < peak_memory()


def test_available_memory_is_limited_by_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    machine = available_memory()
    assert machine > 2**20
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 400\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("1500\n")
    assert available_memory() == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 2**20
