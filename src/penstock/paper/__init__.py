"""The paper's experiments as data: presets, its tables, and their reproduction."""
