"""Figures of a run and of its studies."""
