"""Sentences and number formats."""

from pathlib import Path
from typing import Any

import pytest
from fake_run import comparison_of, write_fake_run, write_json

from penstock.charts.arm_looks import find_arms
from penstock.reports.data.run_data import read_run
from penstock.reports.wording import sentences as wording


def sentence(**changes: Any) -> str:  # noqa: ANN401
    return wording.comparison_sentence(comparison_of("resid_post.2") | changes, "Gated", "ReLU")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (1024, "1,024"),
        (0.98765432, "0.9877"),
        (8.0, "8.000"),
        (12345.678, "12,346"),
        (0.00001234, "1.234e-5"),
        (-0.5, "−0.5000"),
        (0.0, "0.000"),
        (2.5e7, "2.500e7"),
    ],
)
def test_numbers_have_four_significant_digits(value: float | None, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.5 s"), (371.2, "6 min 11 s"), (7260.0, "2 h 01 min")])
def test_durations_read_like_words(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_a_ratio_above_one_is_stated_as_plainly_as_one_below() -> None:
    assert "needs 1.30× the firing latents of the ReLU baseline (95% interval 1.21 to 1.38)" in sentence(
        ratio=1.3, interval=[1.21, 1.38]
    )


@pytest.mark.parametrize("interval", [[0.9, 1.05], [1.0, 1.2], [0.8, 1.0]])
def test_an_interval_that_holds_one_shows_no_difference(interval: list[float]) -> None:
    text = sentence(ratio=0.97, interval=interval)
    assert "no difference is shown between the Gated SAE and the ReLU baseline" in text
    assert "needs" not in text


def test_no_ratio_gives_the_reason() -> None:
    text = sentence(ratio=None, interval=None, overlap=None, reason="the ranges do not overlap.")
    assert text == (
        "No ratio between the Gated SAE and the ReLU baseline at equal loss recovered: the ranges do not overlap."
    )


def test_a_ratio_without_interval_is_no_evidence() -> None:
    assert "no evidence of a difference" in sentence(interval=None)


def test_arms_of_one_architecture_are_told_apart_in_the_headline(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, seeds=(0,), target_l0s=(8,))
    arms = find_arms([*records, records[0] | {"recipe": "paper"}])
    write_json(tmp_path / "comparison.json", {"comparisons": [comparison_of("resid_post.2")], "warnings": []})
    (comparison,) = wording.comparisons(read_run(tmp_path), arms)
    assert (comparison.arm, comparison.baseline) == ("Gated (norm_weighted)", "ReLU")
    assert "the Gated (norm_weighted) SAE" in comparison.sentence


def test_bias_ranges_span_the_records_of_an_arm_and_skip_controls(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, seeds=(0,))
    records[0]["reconstruction_bias"] = 0.9
    records[1]["reconstruction_bias"] = None
    records[2]["reconstruction_bias"] = 1.1
    gated, relu = wording.bias_ranges(records, find_arms(records))
    assert gated == wording.Range("Gated", 0.9, 1.1)
    assert relu.high < 1


def test_warnings_of_one_kind_come_together_and_keep_the_spelling_of_keys(tmp_path: Path) -> None:
    write_fake_run(tmp_path, warnings=False)
    texts = ["resid_post.2: no overlap", "too short: 1", "too short: 2", "plain"]
    write_json(tmp_path / "comparison.json", {"comparisons": [], "warnings": texts})
    groups = wording.warning_groups(read_run(tmp_path))
    assert [(group.title, [text for _, text in group.items]) for group in groups] == [
        ("resid_post.2", ["no overlap"]),
        ("Too short", ["1", "2"]),
        ("Other", ["plain"]),
    ]


def test_settings_are_flattened_to_dotted_keys() -> None:
    nested = {"data": {"tokens": 5, "texts": ["a", "b"]}, "saes": [{"arch": "gated"}, {"arch": "relu"}]}
    assert wording.flatten(nested) == [
        ("data.tokens", "5"),
        ("data.texts", "a, b"),
        ("saes.0.arch", "gated"),
        ("saes.1.arch", "relu"),
    ]
