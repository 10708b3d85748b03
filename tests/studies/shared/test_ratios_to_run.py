"""Series of a study beside the run's arms: who is compared with whom, and that the ratio is that of known curves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.evaluation import Evaluation
from penstock.evaluation.arms import Arm
from penstock.evaluation.comparison import Point, l0_ratio
from penstock.evaluation.statistics import resample_weights
from penstock.evaluation.sums import SUMS_FILE, read_sums, write_sums
from penstock.metrics import metrics_of
from penstock.runs.finished_run import FinishedRun
from penstock.studies.pruning import PruningConfig, pruning
from penstock.studies.pursuit import PursuitConfig, pursuit
from penstock.studies.shared.ratios_to_run import Made, compare_study, series_comparisons
from penstock.studies.shared.study_records import read_or_make

RESAMPLES = 50

UNUSED = ("l1", "square_error", "square_deviation", "square_x_hat", "dot", "cosine", "ce_mean", "kl")
"""Sums that say nothing of L0 or of loss recovered."""


def curve(arch: str, factor: float, *, sites: str = "resid_post.0", **about: Any) -> list[Point]:
    """Points on which log(1 - loss recovered) is linear in log L0; `factor` 0.5 needs half the L0 of 1."""
    about = {"recipe": "paper", "d_sae": 64, "seed": 0, "lr": None} | about
    spread = about.pop("spread", np.ones(RESAMPLES))
    l0s = np.array([2.0, 10.0, 50.0])
    return [
        Point(
            Arm(arch, about["recipe"], about["d_sae"], about["lr"]),
            sites,
            about["seed"],
            l0=l0 * np.concatenate([[1.0], spread]),
            loss_recovered=np.full(RESAMPLES + 1, 1 - 0.4 * (l0 / factor) ** -0.7),
        )
        for l0 in l0s
    ]


def compared(own: list[Point], made: dict[str, list[Point]]) -> list[dict[str, Any]]:
    """Each point of a series is made from the SAE of its arm, seed and place on the curve."""

    def name(point: Point) -> str:
        return f"{point.site}-{point.arm}-{point.seed}-{round(point.l0[0])}"

    return series_comparisons(
        {name(point): point for point in own},
        {curve: [Made(name(point), point) for point in points] for curve, points in made.items()},
    )


def sides(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["arm_label"], entry["baseline_label"]


def test_a_series_of_the_baseline_is_compared_with_gated_and_with_what_it_was_made_from() -> None:
    own = curve("gated", 0.5) + curve("relu", 1.0)
    found = compared(own, {"low activations dropped": curve("relu", 0.8)})
    assert {sides(entry): entry["ratio"] for entry in found} == pytest.approx(
        {("gated", "relu with low activations dropped"): 0.5 / 0.8, ("relu with low activations dropped", "relu"): 0.8}
    )
    for entry in found:
        assert entry["interval"] == pytest.approx([entry["ratio"]] * 2)
        assert (entry["site"], entry["metric"], entry["reason"]) == ("resid_post.0", "loss_recovered", None)
    assert [(entry["arm_curve"], entry["baseline_curve"]) for entry in found] == [
        (None, "low activations dropped"),
        ("low activations dropped", None),
    ]
    assert [(entry["arm"], entry["baseline"]) for entry in found] == [("gated", "relu"), ("relu", "relu")]


def test_curves_are_compared_one_by_one() -> None:
    own = curve("gated", 0.5) + curve("relu", 1.0)
    found = compared(own, {"a": curve("relu", 0.8), "b": curve("relu", 0.4)})
    assert {sides(entry): entry["ratio"] for entry in found} == pytest.approx(
        {
            ("gated", "relu with a"): 0.625,
            ("relu with a", "relu"): 0.8,
            ("gated", "relu with b"): 1.25,
            ("relu with b", "relu"): 0.4,
        }
    )


def test_a_series_of_a_gated_arm_is_compared_with_that_arm_alone() -> None:
    own = curve("gated", 0.5) + curve("gated", 0.3, recipe="free") + curve("relu", 1.0)
    (entry,) = compared(own, {"pursuit": curve("gated", 0.25)})
    assert entry["ratio"] == pytest.approx(2)
    assert sides(entry) == ("gated (paper)", "gated (paper) with pursuit")


def test_what_was_made_in_the_same_way_of_two_architectures_is_compared() -> None:
    """Pursuit on a Gated decoder against pursuit on a ReLU decoder."""
    made = {"pursuit": curve("gated", 0.4) + curve("relu", 0.5)}
    found = compared(curve("gated", 0.5) + curve("relu", 1.0), made)
    ratios = {sides(entry): entry["ratio"] for entry in found}
    assert ratios[("gated with pursuit", "relu with pursuit")] == pytest.approx(0.8)
    assert ("relu with pursuit", "gated with pursuit") not in ratios


def test_a_series_is_compared_with_the_baseline_of_its_own_width_at_its_own_site() -> None:
    own = (
        curve("gated", 0.5) + curve("relu", 1.0) + curve("relu", 0.9, d_sae=96) + curve("relu", 3.0, sites="mlp_out.0")
    )
    found = compared(own, {"pruned": curve("relu", 0.6, d_sae=96) + curve("relu", 1.5, sites="mlp_out.0")})
    ratios = {(entry["site"], *sides(entry)): entry["ratio"] for entry in found}
    assert ratios == pytest.approx(
        {
            ("resid_post.0", "gated", "relu (96 latents) with pruned"): 0.5 / 0.6,
            ("resid_post.0", "relu (96 latents) with pruned", "relu (96 latents)"): 0.6 / 0.9,
            ("mlp_out.0", "relu with pruned", "relu"): 0.5,
        }
    )


def test_seeds_and_resamples_are_pairs() -> None:
    own, made = [], []
    spread = np.exp(0.3 * np.random.default_rng(0).normal(size=RESAMPLES))
    for seed, factor in enumerate((0.4, 0.5)):
        # What the two have in common, in a seed or in a resample, is no difference.
        own += curve("gated", factor * (1 + 0.1 * seed), seed=seed, spread=spread)
        made += curve("relu", 1 + 0.1 * seed, seed=seed, spread=spread)
    (entry,) = compared(own, {"pruned": made})
    assert {one["seed"]: one["ratio"] for one in entry["by_seed"]} == pytest.approx({0: 0.4, 1: 0.5})
    # Two seeds say little about all others: Student's t with one degree of freedom.
    apart = 2**0.5 * 12.7062 / 1.95996 * np.log(0.5 / 0.4) / 2
    assert entry["interval"] == pytest.approx((0.4 * 0.5) ** 0.5 * np.exp([-apart, apart]), rel=1e-4)


def test_a_series_that_gives_no_curve_says_so() -> None:
    (entry,) = compared(curve("gated", 0.5), {"pursuit": curve("gated", 0.5)[:1]})
    assert (entry["ratio"], entry["interval"]) == (None, None)
    assert "at least two SAEs" in entry["reason"]


def bent(arch: str, factor: float, l0s: tuple[float, ...]) -> list[Point]:
    """A curve that is not straight in log L0, as real ones are."""
    points = []
    for l0 in l0s:
        lost = 0.4 * (l0 / factor) ** -0.3 * np.exp(-0.1 * np.log(l0 / factor) ** 2)
        recovered = np.full(RESAMPLES + 1, 1 - lost)
        points.append(Point(Arm(arch, "paper", 64), "resid_post.0", 0, np.full(RESAMPLES + 1, l0), recovered))
    return points


def test_a_series_of_some_saes_is_compared_with_these_alone() -> None:
    """The same SAEs trained once more for two of four targets: no difference, though the two curves have other
    points."""
    own = bent("gated", 1.0, (4, 8, 16, 32)) + bent("relu", 1.0, (4, 8, 16, 32))
    again = bent("gated", 1.0, (4, 32))
    (entry,) = compared(own, {"once more": again})
    assert entry["ratio"] == pytest.approx(1, abs=1e-12)
    # With all four on one side, interpolation alone makes a difference.
    all_four = l0_ratio(own[:4], again)["ratio"]
    assert all_four is not None and abs(all_four - 1) > 0.05
    # Another arm keeps its points: it was not made from these.
    gated = {sides(one): one for one in compared(own, {"pruned": bent("relu", 1.0, (4, 32))})}
    assert gated["relu with pruned", "relu"]["ratio"] == pytest.approx(1, abs=1e-12)
    assert gated["gated", "relu with pruned"]["ratio"] == pytest.approx(all_four)


def test_a_series_of_one_sae_is_compared_with_its_whole_arm() -> None:
    own = {f"gated-{round(point.l0[0])}": point for point in curve("gated", 0.5)}
    pursued = [Made("gated-10", point) for point in curve("gated", 0.25)]
    (entry,) = series_comparisons(own, {"pursuit": pursued})
    assert entry["ratio"] == pytest.approx(2)


def test_a_series_that_is_too_bad_for_its_own_saes_is_compared_with_the_whole_arm() -> None:
    """Made from L0 8 and 32, it recovers less at 32 than they do at 8."""
    own = bent("gated", 1.0, (2, 8, 32)) + bent("relu", 1.0, (2, 8, 32))
    made = {"nonsense": bent("gated", 6.0, (8, 32))}
    assert max(point.loss_recovered[0] for point in made["nonsense"]) < own[1].loss_recovered[0]
    (entry,) = compared(own, made)
    assert entry["ratio"] == l0_ratio(own[:3], made["nonsense"])["ratio"] < 0.3


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> FinishedRun:
    """The finished run in a folder of its own, without studies."""
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder, ignore=shutil.ignore_patterns("studies", "checkpoints"))
    return replace(finished, run_dir=folder)


PURSUIT = PursuitConfig(num_latents=(1, 2, 6))


def test_sums_on_disk_give_the_records_numbers_and_the_same_rows_as_the_runs(copied: FinishedRun) -> None:
    records = pursuit(copied, PURSUIT)
    own, made = read_sums(copied.run_dir / SUMS_FILE), read_sums(copied.run_dir / "studies" / "pursuit" / SUMS_FILE)
    assert set(own) == {
        json.loads(line)["name"] for line in (copied.run_dir / "records.jsonl").read_text().splitlines()
    }
    assert set(made) == {record["name"] for record in records}
    for record in records:
        total = metrics_of({name: values.sum() for name, values in made[record["name"]].items()})
        for key in ("l0", "loss_recovered", "fvu", "delta_ce", "kl"):
            assert total[key].item() == record[key]
        for key in ("tokens", "ce_tokens", "ce_clean", "ce_zero"):
            assert torch.equal(made[record["name"]][key], own[record["of"]][key])


def test_a_study_on_disk_is_compared_from_its_records_and_sums(copied: FinishedRun) -> None:
    read_or_make(copied.run_dir, "pursuit", PURSUIT, lambda: pursuit(copied, PURSUIT))
    found = compare_study(copied.run_dir, "pursuit")
    assert json.loads((copied.run_dir / "studies" / "pursuit" / "comparison.json").read_text()) == {
        "comparisons": found
    }
    assert compare_study(copied.run_dir, "pursuit") == found
    made = "with pursuit on the decoder trained for L0 3"
    # One SAE for each arm and seed is no curve of the run, but what was made of it is one.
    assert [sides(entry) for entry in found] == [
        ("gated", f"gated {made}"),
        (f"gated {made}", f"relu {made}"),
        ("gated", f"relu {made}"),
        (f"relu {made}", "relu"),
    ]
    assert all("at least two SAEs" in entry["reason"] for entry in found)


SEQUENCES = 6


def measured(folder: Path, candidates: dict[str, tuple[dict[str, Any], float, float, torch.Tensor]]) -> None:
    """Records and sums of made-up candidates, by name: what the record says, L0, factor of the curve, spread of L0."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"recipe": "paper", "site": "resid_post.0", "d_sae": 64, "seed": 0}
    records, evaluations = [], {}
    ones = torch.ones(SEQUENCES, dtype=torch.float64)
    nothing = torch.zeros(1, dtype=torch.int64)
    for name, (record, l0, factor, spread) in candidates.items():
        sums = {key: 10 * ones for key in ("tokens", "ce_tokens", *UNUSED)}
        sums |= {"l0": 10 * l0 * spread, "ce_clean": 10 * ones, "ce_zero": 30 * ones}
        sums["ce_spliced"] = sums["ce_clean"] + 20 * 0.4 * (l0 / factor) ** -0.7
        evaluations[name] = Evaluation(sums, nothing, nothing)
        records.append({"name": name, **about, **record})
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_sums(folder / SUMS_FILE, evaluations)


def widened(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Means over resamples of six sequences, apart from the mean over all as Student's t has it."""
    mean = values.mean()
    return mean + (6 / 5) ** 0.5 * 2.57058 / 1.95996 * (weights @ values / SEQUENCES - mean)


def test_ratio_and_interval_are_those_of_the_sums_on_disk(run_folder: Path, tmp_path: Path) -> None:
    shutil.copy(run_folder / "config.json", tmp_path)
    gated, relu, pruned = 0.2 + torch.rand(3, SEQUENCES, generator=torch.Generator().manual_seed(0)).double()
    l0s = (2.0, 10.0, 50.0)
    control = {"identity": ({"arch": "identity", "recipe": None, "seed": None}, 16.0, 1.0, gated)}
    measured(
        tmp_path,
        {f"gated-{l0}": ({"arch": "gated"}, l0, 0.5, gated) for l0 in l0s}
        | {f"relu-{l0}": ({"arch": "relu"}, l0, 1.0, relu) for l0 in l0s}
        | control,
    )
    # Two strengths of one series: were they one curve, it would not be straight.
    measured(
        tmp_path / "studies" / "pruning",
        {
            f"relu-{l0}-{strength}": (
                {"arch": "relu", "of": f"relu-{l0}", "series": "pruned", "curve": strength},
                *(l0, factor, pruned),
            )
            for strength, factor in (("a little", 0.8), ("much", 0.4))
            for l0 in l0s
        },
    )
    found = {sides(entry): entry for entry in compare_study(tmp_path, "pruning")}
    weights = resample_weights(SEQUENCES, 20, 0)
    factors = {"gated": 0.5, "relu": 1.0, "relu with a little": 0.8, "relu with much": 0.4}
    spreads = {"gated": gated, "relu": relu, "relu with a little": pruned, "relu with much": pruned}
    expected = {
        ("gated", "relu with a little"),
        ("gated", "relu with much"),
        ("relu with a little", "relu"),
        ("relu with much", "relu"),
    }
    assert set(found) == expected
    for (arm, baseline), entry in found.items():
        ratio = factors[arm] / factors[baseline]
        on_all = (spreads[arm].sum() / spreads[baseline].sum()).item()
        assert entry["ratio"] == pytest.approx(ratio * on_all)
        # At the same quality L0 is the same multiple everywhere, so each resample's ratio is one of two sums.
        resampled = ratio * widened(weights, spreads[arm]) / widened(weights, spreads[baseline])
        assert entry["interval"] == pytest.approx(np.quantile(resampled.numpy(), [0.025, 0.975]), rel=1e-4)
        assert entry["interval"][1] / entry["interval"][0] > 1.05


def test_a_curve_of_pruning_goes_through_the_saes_that_were_pruned_alike(copied: FinishedRun) -> None:
    records = pruning(copied, PruningConfig(quantiles=(0.25, 0.5), l0_shares=(0.5,), prices=(), fit_tokens=500))
    by_curve: dict[str, set[tuple[Any, ...]]] = {}
    for record in records:
        key = tuple(record[name] for name in ("rule", "strength", "rescaled"))
        by_curve.setdefault(record["curve"], set()).add(key)
    assert set(by_curve) == {
        f"{way}{rescaled}"
        for way in ("quantile thresholds at 0.25", "quantile thresholds at 0.5", "global thresholds at 0.5")
        for rescaled in ("", ", rescaled")
    }
    assert all(len(settings) == 1 for settings in by_curve.values())


def test_a_study_on_other_tokens_is_not_compared(copied: FinishedRun) -> None:
    read_or_make(copied.run_dir, "pursuit", PURSUIT, lambda: pursuit(copied, PURSUIT))
    other = replace(copied, config=replace(copied.config, eval=replace(copied.config.eval, eval_seed=1)))
    pursuit(other, PURSUIT)
    with pytest.raises(ValueError, match="was measured on other held-out tokens than the run"):
        compare_study(copied.run_dir, "pursuit")


def test_new_sums_are_not_vouched_for_by_an_earlier_study(copied: FinishedRun) -> None:
    read_or_make(copied.run_dir, "pursuit", PURSUIT, lambda: pursuit(copied, PURSUIT))
    # As if killed between the sums of another study and its records.
    pursuit(copied, PursuitConfig(num_latents=(3,)))
    assert not (copied.run_dir / "studies" / "pursuit" / "settings.json").exists()
    assert len(read_or_make(copied.run_dir, "pursuit", PURSUIT, lambda: pursuit(copied, PURSUIT))) == 3 * len(
        copied.saes
    )
    assert len(read_sums(copied.run_dir / "studies" / "pursuit" / SUMS_FILE)) == 3 * len(copied.saes)
