"""Candidates measured on a text: their sums, records and points; as many at a time as memory holds."""

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from penstock.activations.harvest import Text
from penstock.evaluation.arms import is_control
from penstock.evaluation.comparison import Point, point_of
from penstock.evaluation.evaluate import Candidate, Evaluation, evaluate
from penstock.evaluation.records import record_of
from penstock.evaluation.sae_record import AboutSAE, SAERecord
from penstock.evaluation.settings import EvalConfig
from penstock.evaluation.statistics import resample_weights

logger = logging.getLogger(__name__)


class Described(NamedTuple):
    """A candidate, and the part of its record that is not measured."""

    candidate: Candidate
    about: AboutSAE


class Measured(NamedTuple):
    """The results of an evaluation."""

    records: list[SAERecord]
    """The records of all candidates, in their order."""
    points: list[Point]
    """The points of the SAEs among them, with bootstrap resamples."""
    evaluations: dict[str, Evaluation]
    """The sums of each candidate, by name."""


def measure(text: Text, settings: EvalConfig, described: Iterable[Described], max_bytes: int | None = None) -> Measured:
    """Evaluate candidates on the held-out tokens of a text.

    Args:
        text: Text whose held-out split is used.
        settings: Numbers of tokens and resamples.
        described: Candidates to measure, taken one by one, so that a generator that loads each SAE in turn holds few.
        max_bytes: Most bytes of candidates' weights in memory, plus those of one more candidate. Candidates that share
            an SAE are counted separately. Default: all are evaluated together. That is faster, because the language
            model runs again for every group.
    """
    rows = text.held_out(settings.eval_tokens, seed=settings.eval_seed)
    weights = resample_weights(len(rows.tokens), settings.bootstrap, settings.eval_seed)
    measured = Measured([], [], {})
    tokens = f"{int(rows.mask.sum()):,}"
    for group in _groups(described, max_bytes):
        logger.info("Evaluating %d reconstructions on %s held-out tokens", len(group), tokens)
        evaluations = evaluate(text.model, rows, [one.candidate for one in group])
        assert not evaluations.keys() & measured.evaluations.keys(), "candidates of two groups share a name"
        measured.evaluations.update(evaluations)
        for candidate, about in group:
            record = record_of(evaluations[candidate.name], weights, about, text.model.vocab_size)
            measured.records.append(record)
            if not is_control(record):
                measured.points.append(point_of(record, evaluations[candidate.name].sums, weights))
        # Before the next group is read.
        del group, candidate
    return measured


def _groups(described: Iterable[Described], max_bytes: int | None) -> Iterator[list[Described]]:
    group: list[Described] = []
    held = 0
    for one in described:
        needed = _weight_bytes(one.candidate)
        if group and max_bytes is not None and held + needed > max_bytes:
            yield group
            group, held = [], 0
        group.append(one)
        held += needed
    if group:
        yield group


def _weight_bytes(candidate: Candidate) -> int:
    """The bytes of a candidate's encoder and decoder in float32."""
    return 2 * 4 * candidate.d_in * len(candidate.decoder_norm)
