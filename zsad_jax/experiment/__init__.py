"""A whole run as checked data, and its execution."""
