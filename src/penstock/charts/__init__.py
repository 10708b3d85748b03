"""Shared parts of all figures: names and looks of arms, lines against L0, saving as PNG and SVG."""
