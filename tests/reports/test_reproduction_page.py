"""The page about several runs and their studies."""

import json
from pathlib import Path

import pytest
from fake_run import NASTY, write_fake_run, write_lines

from penstock.reports import write_pareto_figure
from penstock.reports.reproduction_page import SECTIONS, write_reproduction_page
from penstock.studies.presets import PRESETS

KINDS = {"token": {"share": 0.25, "low": 0.2, "high": 0.3}, "bigram": {"share": None, "low": None, "high": None}}


SITE = PRESETS["embedded"].sites[0]
DIFFERENCE = {"kind": "difference", "site": "s.0", "arm": "gated", "arm_d_sae": 1024} | {
    "baseline": "relu",
    "baseline_d_sae": 1536,
}


def write_studied_run(run: Path) -> None:
    records = write_fake_run(run, seeds=(0,), metrics=False)
    write_pareto_figure(run)
    rows = {
        "shrinkage": [
            {"kind": "toy", "arch": "relu", "magnitude": 0.5},
            {"kind": "pair", "compared": "arms", "a": "gated-8", "b": NASTY, "median": 0.8125},
        ],
        "cost": [{"name": "gated-8", "l0": 7.5, "step_seconds": 0.0125, "step_seconds_ratio": 1.0625}],
        "sensitivity": [
            {"arch": "gated", "factors": {"lr": 4.0, "d_sae": 0.5, "warmup_share": 1.0}, "lost_ratio": 1.1875},
            {"arch": "relu", "site": "s.0", "factors": {"lr": 4.0}, "lost_ratio": None, "diverged": "It is NaN."},
        ],
        "dictionaries": [
            {"kind": "arms", "a": NASTY, "b": "relu-8", "hungarian_cosine": 0.75},
            {**DIFFERENCE, "name": NASTY, "difference": -0.25, "low": -0.5, "high": 0.125, "shown": False},
            {**DIFFERENCE, "name": "cosine", "difference": 0.5, "low": 0.25, "high": 0.75, "shown": True},
        ],
        "concepts": [{"name": "gated-8", "l0": 7.5, "kinds": KINDS}],
    }
    measured = [{**records[0], "of": "gated-8", "series": "harsh"}]
    for study in SECTIONS:
        folder = run / "studies" / study
        folder.mkdir(parents=True)
        write_lines(folder / "records.jsonl", rows.get(study, measured))
    compared = {
        "site": "s.0",
        "arm_label": NASTY,
        "baseline_label": "relu with harsh",
        "ratio": 0.5,
        "interval": [0.375, 0.625],
    }
    (run / "studies" / "pruning" / "comparison.json").write_text(json.dumps({"comparisons": [compared]}))


@pytest.fixture
def page(tmp_path: Path) -> str:
    names = ("resid_post.2", "mlp_out.1")
    for name in names:
        write_studied_run(tmp_path / name)
    studies = {"resid_post.2": tuple(SECTIONS), "mlp_out.1": ("shrinkage", "cost")}
    return write_reproduction_page(tmp_path, studies, "All of it", dict.fromkeys(names, SITE)).read_text()


def test_every_section_and_run_is_on_the_page(page: str) -> None:
    for title, _ in SECTIONS.values():
        assert f"<h2>{title}</h2>" in page
    assert page.count("<h3>resid_post.2</h3>") == len(SECTIONS)
    assert page.count("<h3>mlp_out.1</h3>") == 2


def test_a_section_that_no_run_has_is_left_out(tmp_path: Path) -> None:
    write_studied_run(tmp_path / "a")
    page = write_reproduction_page(tmp_path, {"a": ("cost",)}, "One", {"a": SITE}).read_text()
    assert [title for title, _ in SECTIONS.values() if f"<h2>{title}</h2>" in page] == ["Cost"]


def test_differences_are_read_by_their_intervals(page: str) -> None:
    assert "<td>Gated, 1,024 latents</td><td>ReLU, 1,536 latents</td>" in page
    assert "<td>-0.5 to 0.125</td><td>no difference shown</td>" in page.replace("−", "-")
    assert "<td>0.25 to 0.75</td><td>more</td>" in page
    assert "<td>0.50</td><td>0.375 to 0.625</td><td>fewer</td>" in page


def test_what_is_off_is_said_for_several_settings_at_once(page: str) -> None:
    assert "<td>lr ×4, d_sae ×0.5</td>" in page


def test_what_diverged_stands_in_the_table_without_numbers(page: str) -> None:
    assert f"<td>relu</td><td>s.0</td><td>lr ×4 (diverged)</td>{7 * '<td>–</td>'}" in page


def test_the_papers_numbers_stand_beside_ours(tmp_path: Path) -> None:
    write_studied_run(tmp_path / "a")
    site = next(site for site in PRESETS["gemma-7b"].sites if site.name == "resid_post.20")
    page = write_reproduction_page(tmp_path, {"a": ()}, "One", {"a": site}).read_text()
    assert "The paper's numbers" in page and "<td>97.14</td>" in page and "<td>27.8</td>" in page


def test_numbers_shares_and_gaps_stand_in_the_tables(page: str) -> None:
    assert "<td>0.01250</td>" in page and "<td>1.062</td>" in page and "<td>0.7500</td>" in page
    assert "<td>25% (20% to 30%)</td>" in page
    assert "<td>–</td>" in page


def test_the_page_loads_nothing_and_no_text_of_a_run_becomes_markup(page: str) -> None:
    assert "default-src 'none'" in page
    assert 'src="http' not in page and "<script" not in page
    assert page.count("data:image/svg+xml;base64,") == 2
