"""Presets of the paper's experiments, the paper's tables, and the reproduction of both."""
