"""Differences between dictionaries: their intervals are those of drawing again in plain loops."""

from random import Random
from statistics import fmean

import pytest
import torch

from penstock.studies.concepts import CONTEXT, KINDS, RULES, Kinds
from penstock.studies.differences import AGREEMENT, SeedPair, agreement_differences, share_differences

DRAWS = 4000


def judged(**counts: int) -> Kinds:
    """A dictionary with so many latents of each kind; `none` are context-dependent."""
    names = [CONTEXT if name == "none" else name for name, count in counts.items() for _ in range(count)]
    nothing = torch.zeros(len(names), len(RULES))
    kind = torch.tensor([KINDS.index(name) for name in names], dtype=torch.int64)
    return Kinds(torch.arange(len(names)), kind, nothing, nothing.long())


GATED, RELU = judged(token=30, bigram=20, none=50), judged(token=60, bigram=45, none=45)


def of_kind(found: list[dict], name: str) -> dict:
    (row,) = [row for row in found if row["name"] == name]
    return row


def central(values: list[float]) -> list[float]:
    """The 2.5% and 97.5% quantiles, to within a value."""
    ordered = sorted(values)
    return [ordered[int(0.025 * len(values))], ordered[int(0.975 * len(values))]]


def drawn_share(random: Random, of_kind: int, total: int) -> float:
    return sum(random.random() < of_kind / total for _ in range(total)) / total


def test_a_difference_of_shares_has_the_interval_of_drawing_the_latents_of_both() -> None:
    found = share_differences({"g": GATED, "r": RELU}, [SeedPair("g", "r", 0)], resamples=DRAWS, seed=0)
    assert [row["name"] for row in found] == list(KINDS)
    assert {row["kind"] for row in found} == {"difference"}
    random = Random(0)
    for name, of_gated, of_relu in (("token", 30, 60), ("bigram", 20, 45), (CONTEXT, 50, 45)):
        row = of_kind(found, name)
        assert row["difference"] == pytest.approx(of_gated / 100 - of_relu / 150)
        drawn = [drawn_share(random, of_gated, 100) - drawn_share(random, of_relu, 150) for _ in range(DRAWS)]
        assert [row["low"], row["high"]] == pytest.approx(central(drawn), abs=0.013)
        assert (row["pairs"], row["by_seed"]) == (1, [])
    assert [of_kind(found, name)["shown"] for name in ("token", "bigram", CONTEXT)] == [False, False, True]
    assert of_kind(found, "class")["shown"] is False
    assert of_kind(found, "class")["difference"] == of_kind(found, "class")["high"] == 0
    turned = share_differences({"g": GATED, "r": RELU}, [SeedPair("r", "g", 0)], resamples=DRAWS, seed=0)
    row = of_kind(turned, CONTEXT)
    assert row["difference"] == pytest.approx(-of_kind(found, CONTEXT)["difference"])
    assert row["high"] < 0 and row["shown"]


def many(share: float) -> Kinds:
    """So many latents that drawing them again changes nothing to speak of."""
    return judged(token=round(share * 100_000), none=round((1 - share) * 100_000))


def test_seeds_are_drawn_as_pairs() -> None:
    # Both arms differ from seed to seed, and in the same way but for what is the difference of the seed.
    differences = {0: 0.1, 1: 0.2, 2: 0.3}
    dictionaries = {}
    for seed, difference in differences.items():
        dictionaries |= {f"g{seed}": many(0.2 * seed + difference), f"r{seed}": many(0.2 * seed)}
    pairs = [SeedPair(f"g{seed}", f"r{seed}", seed) for seed in differences]
    row = of_kind(share_differences(dictionaries, pairs, resamples=DRAWS, seed=0), "token")
    assert row["difference"] == pytest.approx(0.2)
    assert {one["seed"]: one["difference"] for one in row["by_seed"]} == pytest.approx(differences)
    # Three numbers drawn three times: 0.1 three times has probability 1 / 27, above 2.5%.
    assert [row["low"], row["high"]] == pytest.approx([0.1, 0.3], abs=0.01)
    assert row["shown"]
    (alone,) = [
        of_kind(share_differences(dictionaries, [pair], resamples=DRAWS, seed=0), "token") for pair in pairs[1:2]
    ]
    assert [alone["low"], alone["high"]] == pytest.approx([0.2, 0.2], abs=0.01)


def test_pairs_of_a_seed_are_averaged_first() -> None:
    dictionaries = {"a": many(0.5), "b": many(0.3), "c": many(0.2), "d": many(0.1)}
    pairs = [SeedPair("a", "b", 0), SeedPair("c", "b", 0), SeedPair("c", "d", 1)]
    row = of_kind(share_differences(dictionaries, pairs, resamples=100, seed=0), "token")
    assert [one["difference"] for one in row["by_seed"]] == pytest.approx([0.05, 0.1])
    assert row["difference"] == pytest.approx(0.075)
    assert row["pairs"] == 3


def test_a_dictionary_in_two_pairs_is_drawn_once() -> None:
    # With equal halves on both sides the draws of the shared dictionary weigh 1, not the root of a half.
    shared, sure = judged(token=20, none=20), many(0.5)
    both = share_differences(
        {"g": sure, "h": sure, "r": shared}, [SeedPair("g", "r", 0), SeedPair("h", "r", 0)], resamples=DRAWS, seed=0
    )
    once = share_differences({"g": sure, "r": shared}, [SeedPair("g", "r", 0)], resamples=DRAWS, seed=0)
    assert [of_kind(both, "token")[key] for key in ("low", "high")] == pytest.approx(
        [of_kind(once, "token")[key] for key in ("low", "high")], abs=0.02
    )


def test_dictionaries_without_a_judged_latent_are_left_out() -> None:
    dictionaries = {"g": GATED, "r": RELU, "empty": judged()}
    pair = SeedPair("g", "r", 0)
    alone = share_differences(dictionaries, [pair], resamples=50, seed=0)
    assert share_differences(dictionaries, [pair, SeedPair("empty", "r", 1)], resamples=50, seed=0) == alone
    assert share_differences(dictionaries, [SeedPair("g", "empty", 0)], resamples=50, seed=0) == []


def agreement(cosine: float, matched: float = 0.5, jaccard: float | None = 0.5) -> dict[str, float | None]:
    return {
        "mean_max_cosine_a_to_b": cosine - 0.05,
        "mean_max_cosine_b_to_a": cosine + 0.05,
        "matched_share_a": matched,
        "matched_share_b": matched + 0.2,
        "mutual_jaccard": jaccard,
        "hungarian_cosine": None,
    }


ARMS, SEEDS = (0.5, 0.52, 0.58), (0.7, 0.6, 0.65, 0.62)


def test_a_difference_of_agreement_has_the_interval_of_drawing_the_pairs_of_both() -> None:
    found = agreement_differences(
        [agreement(value, 0.3, value / 2) for value in ARMS],
        [agreement(value, 0.4, value / 2) for value in SEEDS],
        resamples=DRAWS,
        seed=0,
    )
    assert [row["name"] for row in found] == list(AGREEMENT)
    assert {row["kind"] for row in found} == {"difference"}
    cosine, matched, jaccard = found
    random = Random(0)
    drawn = [fmean(random.choices(ARMS, k=3)) - fmean(random.choices(SEEDS, k=4)) for _ in range(DRAWS)]
    assert cosine["difference"] == pytest.approx(fmean(ARMS) - fmean(SEEDS))
    assert [cosine["low"], cosine["high"]] == pytest.approx(central(drawn), abs=0.005)
    assert jaccard["difference"] == pytest.approx(cosine["difference"] / 2)
    assert (matched["low"], matched["high"]) == pytest.approx((-0.1, -0.1))
    assert all(row["shown"] for row in found)
    assert {(row["pairs_of_arms"], row["pairs_of_seeds"]) for row in found} == {(3, 4)}


def test_arms_that_agree_as_seeds_do_show_no_difference() -> None:
    pairs = [agreement(value) for value in SEEDS]
    for row in agreement_differences(pairs, pairs, resamples=200, seed=0):
        assert row["difference"] == 0
        assert not row["shown"]


def test_one_pair_has_no_interval_and_shows_nothing() -> None:
    for arms, seeds in ((ARMS, SEEDS[:1]), (ARMS[:1], SEEDS)):
        found = agreement_differences(
            [agreement(value) for value in arms], [agreement(value) for value in seeds], resamples=200, seed=0
        )
        assert found[0]["difference"] == pytest.approx(fmean(arms) - fmean(seeds))
        assert {(row["low"], row["high"], row["shown"]) for row in found} == {(None, None, False)}


def test_pairs_without_a_number_are_left_out_of_it() -> None:
    arms = [agreement(0.5, jaccard=0.2), agreement(0.6, jaccard=None), agreement(0.7, jaccard=0.4)]
    seeds = [agreement(0.8, jaccard=None)]
    assert [row["name"] for row in agreement_differences(arms, seeds, resamples=50, seed=0)] == [
        "mean_max_cosine",
        "matched_share",
    ]
    jaccard = agreement_differences(arms, [*seeds, agreement(0.8, jaccard=0.9)], resamples=50, seed=0)[2]
    assert (jaccard["difference"], jaccard["pairs_of_arms"], jaccard["pairs_of_seeds"]) == (pytest.approx(-0.6), 2, 1)
    assert agreement_differences(arms, [], resamples=50, seed=0) == []
