"""A whole run as checked data, and its execution."""

__all__ = [
    "cache",
    "config",
    "config_files",
    "config_flag",
    "presets",
    "results",
    "run",
    "run_info",
]
