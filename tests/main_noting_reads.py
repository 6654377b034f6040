"""Runs the main command, and adds a line to the file READS for each sample that is read."""

import os
import runpy

from zsad_jax.data import loader

read = loader.read_sample


def note(dataset, index):
    with open(os.environ["READS"], "a") as file:
        file.write(f"{dataset.name} {index}\n")
    return read(dataset, index)


if __name__ == "__main__":
    loader.read_sample = note
    runpy.run_module("zsad_jax.main", run_name="__main__", alter_sys=True)
