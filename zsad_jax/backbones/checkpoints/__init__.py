"""Checkpoint files: reading them, matching their arrays with parameter trees, converting layouts."""

__all__ = ["clip", "convert", "dinov2", "read", "siglip", "tips", "torch_layout", "vit"]
