"""What a report reads of a run, and its records as a table."""
