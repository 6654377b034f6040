"""Support code that knows nothing of images or models: errors, files, downloads, devices, command lines."""

__all__ = [
    "arrays",
    "command_line",
    "config",
    "downloads",
    "errors",
    "files",
    "images",
    "interrupts",
    "progress",
    "records",
    "sharding",
    "text_table",
    "threads",
]
