"""What the command `python -m zsad_jax.data` looks at and shows: counts, issues, sheets of images."""
