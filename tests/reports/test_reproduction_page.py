"""The page about several runs and their studies."""

from pathlib import Path

import pytest
from fake_run import NASTY, write_fake_run, write_lines

from penstock.reports import write_pareto_figure
from penstock.reports.reproduction_page import SECTIONS, write_reproduction_page

KINDS = {"token": {"share": 0.25, "low": 0.2, "high": 0.3}, "bigram": {"share": None, "low": None, "high": None}}


def write_studied_run(run: Path) -> None:
    records = write_fake_run(run, seeds=(0,), metrics=False)
    write_pareto_figure(run)
    rows = {
        "cost": [{"name": "gated-8", "l0": 7.5, "step_seconds": 0.0125, "step_seconds_ratio": 1.0625}],
        "dictionaries": [{"kind": "arms", "a": NASTY, "b": "relu-8", "hungarian_cosine": 0.75}],
        "concepts": [{"name": "gated-8", "l0": 7.5, "kinds": KINDS}],
    }
    measured = [{**records[0], "of": "gated-8", "series": "harsh"}]
    for study in SECTIONS:
        folder = run / "studies" / study
        folder.mkdir(parents=True)
        write_lines(folder / "records.jsonl", rows.get(study, measured))


@pytest.fixture
def page(tmp_path: Path) -> str:
    for name in ("resid_post.2", "mlp_out.1"):
        write_studied_run(tmp_path / name)
    return write_reproduction_page(tmp_path, ["resid_post.2", "mlp_out.1"], "All of it").read_text()


def test_every_section_and_run_is_on_the_page(page: str) -> None:
    for title, _ in SECTIONS.values():
        assert f"<h2>{title}</h2>" in page
    assert page.count("<h3>resid_post.2</h3>") == page.count("<h3>mlp_out.1</h3>") == len(SECTIONS)


def test_numbers_shares_and_gaps_stand_in_the_tables(page: str) -> None:
    assert "<td>0.01250</td>" in page and "<td>1.062</td>" in page and "<td>0.7500</td>" in page
    assert "<td>25% (20% to 30%)</td>" in page
    assert "<td>–</td>" in page


def test_the_page_loads_nothing_and_no_text_of_a_run_becomes_markup(page: str) -> None:
    assert "default-src 'none'" in page
    assert 'src="http' not in page and "<script" not in page
    assert page.count("data:image/svg+xml;base64,") == 2
