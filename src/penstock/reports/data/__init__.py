"""Reading of a run for its report, and its records as a table."""
