"""What the command `python -m zsad_jax.data` looks at and shows: counts, faults, sheets of images."""
