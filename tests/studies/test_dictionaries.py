"""Which SAEs are compared, and that the parts are given the tokens they need."""

from dataclasses import replace

import pytest
import torch

from penstock.evaluation.sae_record import Records
from penstock.inspection.matching import Matching, hungarian
from penstock.runs.finished_run import FinishedRun
from penstock.studies.concepts import ConceptsConfig, concepts
from penstock.studies.dictionaries import DictionariesConfig, dictionaries
from penstock.studies.shared.pairs import pairs

FAR = DictionariesConfig(most_apart=1000.0)


def apart(records: Records) -> tuple[Records, Records]:
    """The records of SAEs or pairs, and the differences."""
    differences = [record for record in records if record.get("kind") == "difference"]
    return [record for record in records if record not in differences], differences


def test_held_out_activations_are_those_of_the_positions_that_count_row_by_row(finished: FinishedRun) -> None:
    rows = finished.held_out()
    found = finished.held_out_activations()["resid_post.0"]
    one_by_one = [
        finished.model.activations(tokens[None], ["resid_post.0"])["resid_post.0"][0][mask]
        for tokens, mask in zip(rows.tokens, rows.mask, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(one_by_one))


SEEDS = {("gated0", "gated1", "seeds"), ("relu0", "relu1", "seeds")}


def test_arms_are_compared_across_seeds_as_seeds_are(finished: FinishedRun) -> None:
    """At one seed both begin with the same weights."""
    found, _ = apart(dictionaries(finished, FAR))
    assert {(row["a"], row["b"], row["kind"]) for row in found} == SEEDS | {
        ("gated0", "relu1", "arms"),
        ("gated1", "relu0", "arms"),
    }


def test_where_differences_are_pairs_arms_are_paired_within_a_seed(finished: FinishedRun) -> None:
    l0 = dict.fromkeys(finished.saes, 3.0)
    found = {(pair.a, pair.b, pair.kind) for pair in pairs(finished, l0, 1.3)}
    assert found == SEEDS | {("gated0", "relu0", "arms"), ("gated1", "relu1", "arms")}


def test_a_run_of_one_seed_compares_its_arms_at_that(finished: FinishedRun) -> None:
    names = ("gated0", "relu0")
    about = {name: finished.about[name] for name in names}
    run = replace(finished, saes={name: finished.saes[name] for name in names}, about=about)
    found, differences = apart(dictionaries(run, FAR))
    assert [(row["a"], row["b"], row["kind"]) for row in found] == [("gated0", "relu0", "arms")]
    assert not differences


def test_an_sae_that_never_fires_is_left_out(finished: FinishedRun, caplog: pytest.LogCaptureFixture) -> None:
    l0 = {**dict.fromkeys(finished.saes, 3.0), "relu1": 0.0}
    found = {(pair.a, pair.b) for pair in pairs(finished, l0, 1.3)}
    assert found == {("gated0", "relu0"), ("gated0", "gated1")}
    assert "relu1 fires on no held-out token" in caplog.text


def test_saes_too_far_apart_in_l0_are_not_compared(finished: FinishedRun) -> None:
    rows, _ = apart(dictionaries(finished, FAR))
    widest = max(max(row["l0_a"] / row["l0_b"], row["l0_b"] / row["l0_a"]) for row in rows)
    fewer, _ = apart(dictionaries(finished, DictionariesConfig(most_apart=max(1.0, widest - 1e-9))))
    assert len(fewer) == len(rows) - 1


def test_a_dictionary_agrees_fully_with_itself(finished: FinishedRun) -> None:
    twin = replace(
        finished,
        saes={"gated0": finished.saes["gated0"], "gated1": finished.saes["gated0"]},
        about={name: finished.about[name] for name in ("gated0", "gated1")},
    )
    (row,) = dictionaries(twin, FAR)
    assert row["l0_a"] == row["l0_b"]
    assert all(
        value == pytest.approx(1, abs=1e-5) for key, value in row.items() if "cosine" in key and "null" not in key
    )


def test_concepts_give_every_sae_shares_that_add_up(finished: FinishedRun) -> None:
    found, _ = apart(concepts(finished, ConceptsConfig(min_firings=2)))
    assert [row["name"] for row in found] == list(finished.saes)
    for row in found:
        assert sum(kind["share"] for kind in row["kinds"].values()) == pytest.approx(1)


ARMS = {
    "site": "resid_post.0",
    **{"arm": "gated", "arm_recipe": "paper_clipped", "arm_d_sae": 32},
    **{"baseline": "relu", "baseline_recipe": "paper_clipped", "baseline_d_sae": 32},
}


def test_differences_of_agreement_are_taken_by_the_seeds_of_either_arm(finished: FinishedRun) -> None:
    rows, differences = apart(dictionaries(finished, FAR))
    names = ["mean_max_cosine", "matched_share", "mutual_jaccard"]
    assert [(row["yardstick"], row["name"]) for row in differences] == [
        (yardstick, name) for yardstick in ("gated", "relu") for name in names
    ]
    cosine = {(r["a"], r["b"]): (r["mean_max_cosine_a_to_b"] + r["mean_max_cosine_b_to_a"]) / 2 for r in rows}
    between = (cosine["gated0", "relu1"] + cosine["gated1", "relu0"]) / 2
    for row in differences:
        assert {key: row[key] for key in ARMS} == ARMS
        assert (row["yardstick_recipe"], row["yardstick_d_sae"]) == ("paper_clipped", 32)
        # Both pairs of arms are beside the same pair of seeds: one group, of which nothing can be drawn.
        assert (row["pairs_of_arms"], row["pairs_of_seeds"], row["groups"], row["low"]) == (2, 1, 1, None)
        if row["name"] == "mean_max_cosine":
            of_seeds = cosine[f"{row['yardstick']}0", f"{row['yardstick']}1"]
            assert row["difference"] == pytest.approx(between - of_seeds)


def test_seeds_of_other_arms_and_sites_are_no_yardstick(finished: FinishedRun) -> None:
    # A third arm, whose two seeds agree fully.
    about = {name: dict(finished.about[name]) for name in finished.saes}
    saes = dict(finished.saes)
    for seed in (0, 1):
        saes[f"third{seed}"] = finished.saes["gated0"]
        about[f"third{seed}"] = about["gated0"] | {"recipe": "third", "seed": seed}
    _, before = apart(dictionaries(finished, FAR))
    _, after = apart(dictionaries(replace(finished, saes=saes, about=about), FAR))
    assert len(after) == 3 * len(before)
    assert [row for row in after if "third" not in (row["arm_recipe"], row["baseline_recipe"])] == before


def test_the_hungarian_null_is_the_matching_of_random_directions_made_once_for_equal_sizes(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.studies import dictionaries as study

    sizes = []

    def counting(W_a: torch.Tensor, W_b: torch.Tensor) -> Matching:
        sizes.append((len(W_a), len(W_b)))
        return hungarian(W_a, W_b)

    monkeypatch.setattr(study, "hungarian", counting)
    rows, _ = apart(dictionaries(finished, FAR))
    assert len(sizes) == len(set(sizes))
    assert set(sizes) == {tuple(sorted((row["latents_a"], row["latents_b"]))) for row in rows}
    # 30 random directions in 16 dimensions against 30: by chance alone, the best matching has a mean cosine of 0.4.
    draws = torch.Generator().manual_seed(7)
    for row in rows:
        a, b = (torch.randn(int(row[key]), 16, generator=draws) for key in ("latents_a", "latents_b"))
        assert row["hungarian_null_cosine"] == pytest.approx(hungarian(a, b).cosine.mean().item(), abs=0.06)
        assert 0.2 < row["hungarian_null_cosine"] < row["hungarian_cosine"]


def test_differences_of_shares_are_gated_less_baseline_seed_by_seed(finished: FinishedRun) -> None:
    rows, differences = apart(concepts(finished, ConceptsConfig(min_firings=2, most_apart=1000.0)))
    kinds = {row["name"]: row["kinds"] for row in rows}
    assert [row["name"] for row in differences] == list(kinds["gated0"])
    for row in differences:
        assert {key: row[key] for key in ARMS} == ARMS
        shares = [
            kinds[f"gated{seed}"][row["name"]]["share"] - kinds[f"relu{seed}"][row["name"]]["share"] for seed in (0, 1)
        ]
        assert [one["difference"] for one in row["by_seed"]] == pytest.approx(shares)
        assert row["difference"] == pytest.approx(sum(shares) / 2)
    assert any(row["difference"] for row in differences)


def test_differences_do_not_depend_on_the_order_of_the_arms(finished: FinishedRun) -> None:
    order = ["relu1", "gated0", "relu0", "gated1"]
    turned = replace(finished, saes={name: finished.saes[name] for name in order})
    settings = ConceptsConfig(min_firings=2, most_apart=1000.0)
    one, other = (
        {(row["arm"], row.get("yardstick"), row["name"]): row["difference"] for row in apart(found)[1]}
        for found in (
            [*dictionaries(finished, FAR), *concepts(finished, settings)],
            [*dictionaries(turned, FAR), *concepts(turned, settings)],
        )
    )
    assert len(one) == 2 * 3 + 7
    assert other == pytest.approx(one, abs=1e-9)


def test_shares_of_saes_too_far_apart_in_l0_are_not_compared(finished: FinishedRun) -> None:
    rows, _ = apart(concepts(finished, ConceptsConfig(min_firings=2)))
    l0 = {row["name"]: row["l0"] for row in rows}
    nearest = min(
        max(l0[f"gated{seed}"] / l0[f"relu{seed}"], l0[f"relu{seed}"] / l0[f"gated{seed}"]) for seed in (0, 1)
    )
    _, none = apart(concepts(finished, ConceptsConfig(min_firings=2, most_apart=max(1.0, nearest - 1e-9))))
    assert none == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DictionariesConfig(most_apart=0.5), "most_apart=0.5 is out of range"),
        (lambda: ConceptsConfig(most_apart=0.5), "most_apart=0.5 is out of range"),
        (lambda: ConceptsConfig(threshold=0.0), "threshold=0.0 is out of range"),
        (lambda: ConceptsConfig(min_firings=1), "min_firings=1 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
