"""The page about several runs and their studies."""

import base64
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import NASTY, write_fake_run, write_lines

from penstock.cli import reproduction
from penstock.paper.preset import Cited
from penstock.paper.presets import PRESETS
from penstock.reports import write_pareto_figure
from penstock.reports.pages.reproduction_page import write_reproduction_page
from penstock.reports.pages.study_tables import difference_table
from penstock.studies import STUDIES
from penstock.training.trainer import DivergenceError

KINDS = {"token": {"share": 0.25, "low": 0.2, "high": 0.3}, "bigram": {"share": None, "low": None, "high": None}}


SITE = PRESETS["embedded"].sites[0]
DIFFERENCE = {
    **{"kind": "difference", "site": "s.0", "name": "cosine"},
    **{"difference": 0.5, "low": 0.25, "high": 0.75, "shown": True},
    **{"arm": "gated", "arm_recipe": "paper", "arm_d_sae": 1024},
    **{"baseline": "relu", "baseline_recipe": "paper", "baseline_d_sae": 1536},
}
GATED_SEEDS = {"yardstick": "gated", "yardstick_recipe": "paper", "yardstick_d_sae": 1024}


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
            DIFFERENCE,
        ],
        "concepts": [{"name": "gated-8", "l0": 7.5, "kinds": KINDS}],
    }
    measured = [{**records[0], "of": "gated-8", "series": "harsh"}]
    for study in STUDIES:
        folder = run / "studies" / study
        folder.mkdir(parents=True)
        write_lines(folder / "records.jsonl", rows.get(study, measured))
    compared = {
        **{"site": "s.0", "metric": "loss_recovered", "arm": "gated", "baseline": "relu"},
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
    studies = {"resid_post.2": tuple(STUDIES), "mlp_out.1": ("shrinkage", "cost")}
    return write_reproduction_page(tmp_path, studies, "All of it", dict.fromkeys(names, SITE)).read_text()


def test_every_section_and_run_is_on_the_page(page: str) -> None:
    for study in STUDIES.values():
        assert f"<h2>{study.title}</h2>" in page
    assert page.count("<h3>resid_post.2</h3>") == len(STUDIES)
    assert page.count("<h3>mlp_out.1</h3>") == 2


def test_a_section_that_no_run_has_is_left_out(tmp_path: Path) -> None:
    write_studied_run(tmp_path / "a")
    page = write_reproduction_page(tmp_path, {"a": ("cost",)}, "One", {"a": SITE}).read_text()
    assert [study.title for study in STUDIES.values() if f"<h2>{study.title}</h2>" in page] == ["Cost"]


def test_differences_are_read_by_their_intervals(page: str) -> None:
    assert "<td>Gated, 1,024 latents</td><td>ReLU, 1,536 latents</td>" in page
    assert "<td>-0.5 to 0.125</td><td>no difference shown</td>" in page.replace("−", "-")
    assert "<td>0.25 to 0.75</td><td>more</td>" in page
    assert "<td>0.500</td><td>0.375 to 0.625</td><td>fewer</td>" in page


def test_a_difference_has_a_column_for_its_yardstick_where_it_has_one() -> None:
    columns, ((*cells,),) = difference_table([DIFFERENCE])
    assert columns == ("site", "what", "arm", "compared with", "difference", "95% interval", "reading")
    with_seeds, rows = difference_table([{**DIFFERENCE, **GATED_SEEDS}])
    assert with_seeds == (*columns[:4], "yardstick: seeds of", *columns[4:])
    assert rows == [[*cells[:4], "Gated, 1,024 latents", *cells[4:]]]


def test_arms_of_a_difference_have_their_recipes_where_these_differ() -> None:
    difference = {**DIFFERENCE, **GATED_SEEDS, "baseline": "gated", "baseline_recipe": "free", "baseline_d_sae": 1024}
    (row,) = difference_table([difference]).rows
    assert row[2:5] == [f"Gated, 1,024 latents, {recipe}" for recipe in ("paper", "free", "paper")]


def test_what_is_off_is_said_for_several_settings_at_once(page: str) -> None:
    assert "<td>lr ×4, d_sae ×0.5</td>" in page


def test_what_diverged_stands_in_the_table_without_numbers(page: str) -> None:
    assert f"<td>relu</td><td>s.0</td><td>lr ×4 (diverged)</td>{7 * '<td>–</td>'}" in page


def test_the_papers_numbers_stand_beside_ours(tmp_path: Path) -> None:
    write_studied_run(tmp_path / "a")
    site = next(site for site in PRESETS["gemma-7b"].sites if site.name == "resid_post.20")
    page = html.unescape(write_reproduction_page(tmp_path, {"a": ()}, "One", {"a": site}).read_text())
    assert "the paper's pair of runs" in page.lower()
    assert "nearest in log L0" in page
    assert "<td>97.14</td>" in page and "<td>27.8</td>" in page


def test_reproduce_draws_the_papers_runs_into_the_figure_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemma = PRESETS["gemma-7b"]
    known = next(site for site in gemma.sites if site.name == "resid_post.20")
    widths = {"gated": 1024, "compute_matched": 1024, "width_matched": 512}
    arms = {name: replace(arm, d_sae=Cited(widths[name], "a test")) for name, arm in known.arms.items()}
    site = replace(known, name="resid_post.2", arms=arms, studies=Cited((), "a test"))
    monkeypatch.setitem(reproduction.PRESETS, "gemma-7b", replace(gemma, sites=(site,)))

    def finished(_: Any, folder: Path) -> dict[str, list[Any]]:
        write_fake_run(folder, sites=(folder.name,), seeds=(0,), metrics=False)
        return {}

    monkeypatch.setattr(reproduction, "reproduce", finished)
    reproduction.run_preset(reproduction.Reproduce(preset="gemma-7b", out=tmp_path))
    (figure,) = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", (tmp_path / "index.html").read_text())
    # matplotlib leaves each text as a comment beside its outlines.
    svg = base64.b64decode(figure).decode()
    assert "<!-- paper: Gated, 1,024 latents -->" in svg and "<!-- paper: ReLU, 1,024 latents -->" in svg


def test_a_site_of_which_everything_diverged_does_not_cost_the_others_their_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_diverges(_: Any, folder: Path) -> dict[str, list[Any]]:
        if folder.name == "mlp_out.1":
            raise DivergenceError("All have diverged.")
        write_fake_run(folder, sites=(folder.name,), seeds=(0,), metrics=False)
        return {}

    monkeypatch.setattr(reproduction, "reproduce", one_diverges)
    reproduction.run_preset(reproduction.Reproduce(preset="embedded", out=tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "resid_post.2" in page and "attn_z.2" in page and not (tmp_path / "mlp_out.1").exists()
    assert "mlp_out.1 is left out. All have diverged." in capsys.readouterr().err


def test_numbers_shares_and_gaps_stand_in_the_tables(page: str) -> None:
    assert "<td>0.01250</td>" in page and "<td>1.062</td>" in page and "<td>0.7500</td>" in page
    assert "<td>25% (20% to 30%)</td>" in page
    assert "<td>–</td>" in page


def test_the_page_loads_nothing_and_no_text_of_a_run_becomes_markup(page: str) -> None:
    assert "default-src 'none'" in page
    assert 'src="http' not in page and "<script" not in page
    assert page.count("data:image/svg+xml;base64,") == 2
