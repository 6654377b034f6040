"""Scores, anomaly maps and decisions for a user's own images."""
