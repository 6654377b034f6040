"""Parts that several methods share."""

__all__ = [
    "anomaly_map",
    "augmentation",
    "clusters",
    "config",
    "layers",
    "learner",
    "losses",
    "nearest",
    "prompt_files",
    "prompts",
    "scaling",
    "similarity",
]
