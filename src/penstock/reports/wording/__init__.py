"""Words, number formats and definitions of the reports."""
