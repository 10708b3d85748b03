"""What the studies share: their declaration, pairs of SAEs, SAEs to train, records, ratios to the arms of a run."""
