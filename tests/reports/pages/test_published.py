"""Our numbers beside the paper's: a small site worked out by hand, and what the presets give."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.paper.preset import ArmPreset, Cited, SitePreset
from penstock.paper.presets import PRESETS
from penstock.paper.tables import PublishedRun
from penstock.reports.data.run_data import read_published
from penstock.reports.figures.pareto_figure import PANELS
from penstock.reports.pages.published import PUBLISHED_COLUMNS, headline_table, published_table, write_published


def arm(arch: str, d_sae: int, *runs: PublishedRun) -> ArmPreset:
    like = PRESETS["embedded"].sites[0].arms["gated"]
    return replace(like, arch=arch, d_sae=Cited(d_sae, "a test"), published=Cited(runs, "a table of the test"))


SITE = replace(
    PRESETS["embedded"].sites[0],
    name="mlp_out.1",
    arms={
        "gated": arm(
            "gated", 2000, PublishedRun(1.9e-4, None, 40.0, 98.575, 1.0, 95.5), PublishedRun(3e-3, None, 10.0, 97.1)
        ),
        "compute_matched": arm("relu", 3000, PublishedRun(None, None, 1079.5), PublishedRun(3e-5, 7.5e-4, 20.0)),
        "width_matched": arm("relu", 2000),
    },
)


def record(name: str, arch: str, d_sae: int, l0: float | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "site": "mlp_out.1", "arch": arch, "d_sae": d_sae, "l0": l0, **more}


def preset_site(preset: str, name: str) -> SitePreset:
    (found,) = [site for site in PRESETS[preset].sites if site.name == name]
    return found


def rows_of(*records: dict[str, Any]) -> list[list[str]]:
    table = published_table(SITE, records)
    assert table is not None
    assert table.columns == PUBLISHED_COLUMNS
    assert all(len(row) == len(PUBLISHED_COLUMNS) for row in table.rows)
    return table.rows


def test_a_row_is_as_worked_out_by_hand() -> None:
    ours = {"loss_recovered": 0.98761, "reconstruction_bias": 0.99712, "frac_alive": 0.5}
    rows = rows_of(record("gated-a", "gated", 2000, 38.1234, **ours))
    assert rows == [
        [*("Gated, 2,000 latents", "3e-3", "10", "97.1", "–", "–"), *("38.12", "98.76", "0.9971", "50.00", "gated-a")],
        [
            *("Gated, 2,000 latents", "1.9e-4", "40", "98.575", "1", "95.5"),
            *("38.12", "98.76", "0.9971", "50.00", "gated-a"),
        ],
        [*("ReLU, 3,000 latents", "3e-5 (lr 7.5e-4)", "20", "–", "–", "–"), *"–––––"],
        [*("ReLU, 3,000 latents", "–", "1079.5", "–", "–", "–"), *"–––––"],
    ]


def test_a_number_that_we_lack_is_a_dash() -> None:
    rows = rows_of(record("gated-a", "gated", 2000, 12.0, loss_recovered=None, reconstruction_bias=None))
    assert rows[0][6:] == ["12.00", "–", "–", "–", "gated-a"]


def test_nearest_is_by_the_ratio_of_l0_and_not_by_the_difference() -> None:
    # 10 lies 5.5 above 4.5 and 6 below 16, but 10 / 4.5 = 2.22 and 16 / 10 = 1.6; 99 / 40 = 2.475 and 40 / 16 = 2.5.
    ours = [record(f"l0-{l0}", "gated", 2000, l0) for l0 in (4.5, 16.0, 99.0)]
    assert [row[-1] for row in rows_of(*ours)[:2]] == ["l0-16.0", "l0-99.0"]


def test_only_saes_of_the_same_site_architecture_and_width_are_taken() -> None:
    wrong = [
        record("arch", "relu", 2000, 10.0),
        record("width", "gated", 3000, 10.0),
        {**record("site", "gated", 2000, 10.0), "site": "mlp_out.2"},
        record("silent", "gated", 2000, 0.0),
        record("unmeasured", "gated", 2000, None),
        record("zero", "zero", 2000, 10.0),
    ]
    assert all(row[-1] == "–" for row in rows_of(*wrong))
    rows = rows_of(*wrong, record("right", "gated", 2000, 300.0), record("wide", "relu", 3000, 1.0))
    assert [row[-1] for row in rows] == ["right", "right", "wide", "wide"]


def test_of_two_seeds_equally_near_the_first_is_taken() -> None:
    rows = rows_of(record("seed0", "gated", 2000, 11.0), record("seed1", "gated", 2000, 11.0))
    assert rows[0][-1] == "seed0"


def test_an_sae_with_the_papers_lambda_comes_before_one_that_is_nearer() -> None:
    # SITE's Gated runs: lambda 3e-3 at L0 10 and 1.9e-4 at L0 40.
    ours = [
        record("near-10", "gated", 2000, 10.0, paper_lambda=None),
        record("far", "gated", 2000, 90.0, paper_lambda=3e-3 * (1 + 5e-7)),
        record("far-seed1", "gated", 2000, 9.0, paper_lambda=3e-3),
        record("off", "gated", 2000, 50.0, paper_lambda=1.9e-4 * (1 + 5e-6)),
        record("near-40", "gated", 2000, 39.0),
        record("other arm", "relu", 2000, 40.0, paper_lambda=1.9e-4),
        record("relu", "relu", 3000, 20.0),
    ]
    assert [row[-1] for row in rows_of(*ours)] == ["far", "near-40", "relu", "relu"]


@pytest.mark.parametrize("l0", [0.0, None])
def test_an_sae_with_the_papers_lambda_is_shown_even_if_nothing_fires(l0: float | None) -> None:
    ours = [record("silent", "gated", 2000, l0, paper_lambda=3e-3), record("near", "gated", 2000, 10.0)]
    assert [row[-1] for row in rows_of(*ours)[:2]] == ["silent", "near"]


def test_a_run_without_a_lambda_has_the_nearest_in_l0() -> None:
    # The run at L0 1079.5 has no lambda in the paper's tables.
    ours = [record("with", "relu", 3000, 20.0, paper_lambda=3e-5), record("near", "relu", 3000, 1000.0)]
    assert [row[-1] for row in rows_of(*ours)[2:]] == ["with", "near"]


@pytest.mark.parametrize("preset", PRESETS)
def test_there_is_a_table_where_the_paper_has_one(preset: str, tmp_path: Path) -> None:
    for site in PRESETS[preset].sites:
        write_published(tmp_path, site)
        table, records = published_table(site, []), read_published(tmp_path)
        if preset in ("embedded", "gelu-1l"):
            assert table is None and records == [] and not list(tmp_path.iterdir())
        else:
            assert table is not None
            count = sum(len(arm.published.value) for arm in site.arms.values())
            assert len(table.rows) == len(records) == count > 0


def test_the_papers_runs_are_records_in_our_units(tmp_path: Path) -> None:
    write_published(tmp_path, SITE)
    records = read_published(tmp_path)
    assert {key: value for key, value in records[1].items() if value is not None} == {
        **{"name": "gated", "arch": "gated", "d_sae": 2000, "site": "mlp_out.1", "l0": 40.0},
        **{"loss_recovered": pytest.approx(0.98575), "reconstruction_bias": 1.0, "frac_alive": pytest.approx(0.955)},
    }
    assert [record["l0"] for record in records] == [10.0, 40.0, 20.0, 1079.5]
    assert records[2]["name"] == "compute_matched" and records[2]["loss_recovered"] is None
    assert {"loss_recovered", "reconstruction_bias"} <= set(PANELS)


def comparison(**changes: Any) -> dict[str, Any]:
    same = {"site": "resid_post.20", "metric": "loss_recovered", "arm": "gated", "arm_d_sae": 131_072}
    return {
        **same,
        "baseline": "relu",
        "baseline_d_sae": 196_608,
        "ratio": 0.5486,
        "interval": [0.5213, 0.5921],
    } | changes


def test_the_headline_pair_is_the_papers_with_our_ratio_beside() -> None:
    site = preset_site("gemma-7b", "resid_post.20")
    others = [
        comparison(site="resid_post.6", ratio=0.1),
        comparison(baseline_d_sae=131_072, ratio=0.2),
        comparison(arm_d_sae=65_536, ratio=0.3),
        comparison(metric="delta_ce", ratio=0.4),
    ]
    table = headline_table(site, [*others, comparison()])
    assert table is not None
    assert table.rows == [
        [
            "Gated, 131,072 latents / ReLU, 196,608 latents",
            *("12.3 / 27.8", "97.14 / 97.15", "0.997 / 0.879", "0.442", "0.549", "0.521 to 0.592"),
        ]
    ]
    assert len(table.columns) == len(table.rows[0])


def test_the_headline_pair_stands_alone_where_ours_gave_no_ratio() -> None:
    site = preset_site("gemma-7b", "mlp_out.20")
    for comparisons in ([], [comparison(site="mlp_out.20", ratio=None, interval=None)]):
        table = headline_table(site, comparisons)
        assert table is not None
        # 24.4 / 56.8 = 0.4296
        assert table.rows[0][1:] == ["24.4 / 56.8", "87.81 / 87.23", "1.004 / 0.894", "0.430", "–", "–"]


def test_only_gemmas_residual_and_mlp_site_of_layer_20_have_a_headline() -> None:
    found = {
        (name, site.name)
        for name, preset in PRESETS.items()
        for site in preset.sites
        if headline_table(site, [comparison(site=site.name)]) is not None
    }
    assert found == {("gemma-7b", "resid_post.20"), ("gemma-7b", "mlp_out.20")}


@pytest.mark.parametrize("lacking", ["gated", "compute_matched"])
def test_half_a_pair_is_none(lacking: str) -> None:
    site = preset_site("gemma-7b", "resid_post.20")
    arms = {**site.arms, lacking: replace(site.arms[lacking], published=Cited((), "not read"))}
    assert headline_table(replace(site, arms=arms), [comparison()]) is None
