"""Parts that several methods share."""

__all__ = [
    "anomaly_map",
    "config",
    "layers",
    "learner",
    "losses",
    "prompt_files",
    "prompts",
    "similarity",
]
