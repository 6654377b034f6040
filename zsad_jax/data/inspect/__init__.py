"""Parts of the command `python -m zsad_jax.data`: counts, issues, contact sheets."""

__all__ = ["contact_sheet", "opened", "stock", "summary", "verify"]
