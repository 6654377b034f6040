"""Parts of the command `python -m zsad_jax.data`: counts, issues, contact sheets."""
