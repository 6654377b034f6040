"""A whole run as checked data, and its execution."""

__all__ = ["config", "presets", "run"]
