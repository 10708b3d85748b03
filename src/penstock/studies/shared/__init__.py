"""Shared parts of the studies: declaration, pairs of SAEs, training of variants, records, comparison with the run."""
