"""Checkpoint files: reading them, matching their arrays with parameter trees, converting layouts."""
