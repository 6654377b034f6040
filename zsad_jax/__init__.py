"""Zero-shot anomaly detection in JAX."""
