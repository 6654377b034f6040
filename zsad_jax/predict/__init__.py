"""Scores, anomaly maps and decisions for a user's own images."""

__all__ = ["figure", "outputs", "run", "score", "thresholds"]
