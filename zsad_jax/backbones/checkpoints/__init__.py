"""Checkpoint files: reading them, matching their arrays with parameter trees, converting layouts."""

__all__ = ["clip", "convert", "read", "tips", "torch_layout"]
