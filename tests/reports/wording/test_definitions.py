"""The words of the report."""

import random

from fake_run import sae_record

from penstock.reports.wording.definitions import LABELS, METRICS, OTHERS

NOT_METRICS = {
    *("name", "arch", "recipe", "model", "site", "d_in", "d_sae", "sparsity_coef", "target_l0", "seed"),
    *("lr", "lr_rule", "tokens_trained", "unique_tokens", "passes", "train_seconds", "tokens_evaluated"),
    *("sequences_evaluated", "intervals", "density_histogram", "warnings"),
}


def test_every_metric_of_a_record_is_defined_and_no_other() -> None:
    record = sae_record(random.Random(0), "embedded", "resid_post.2", "gated", 8, 0)
    assert {definition.key for definition in METRICS} == set(record) - NOT_METRICS


def test_no_two_definitions_share_a_key_or_a_label() -> None:
    everything = [*METRICS, *OTHERS]
    assert len({definition.key for definition in everything}) == len(everything) == len(LABELS)
    assert len(set(LABELS.values())) == len(everything)


def test_definitions_are_whole_sentences() -> None:
    for definition in (*METRICS, *OTHERS):
        assert definition.meaning.endswith("."), definition.key
        assert definition.meaning[0].isupper(), definition.key
        assert definition.formula
        assert definition.unit
        assert definition.bounds
