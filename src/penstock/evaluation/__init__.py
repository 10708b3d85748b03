"""Exact evaluation of SAEs on held-out tokens."""

from penstock.evaluation.evaluate import Candidate, Evaluation, evaluate
from penstock.evaluation.records import record_of

__all__ = ["Candidate", "Evaluation", "evaluate", "record_of"]
