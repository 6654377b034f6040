"""Tests of the measurement of memory."""

import subprocess
import sys

import numpy as np

from zsad_jax.utils.memory import peak_memory


def test_peak_memory_does_not_count_that_of_the_parent():
    large = np.ones(2**26)  # 512 MiB
    code = "from zsad_jax.utils.memory import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < large.nbytes < peak_memory()
