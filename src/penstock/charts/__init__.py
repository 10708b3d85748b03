"""Shared parts of all figures: labels and styles of arms, lines against L0, and saving as PNG and SVG."""
