"""Runs: preparing, training, resuming, dividing, evaluating and comparing them, and estimating their cost."""
