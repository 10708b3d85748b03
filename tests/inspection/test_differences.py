"""Differences between dictionaries: their intervals are those of drawing again in plain loops."""

from itertools import product
from random import Random
from statistics import fmean

import numpy as np
import pytest
import torch

from penstock.inspection.concept_rules import CONTEXT, KINDS, RULES, Kinds
from penstock.inspection.differences import AGREEMENT, SeedPair, agreement_differences, share_differences

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


def agreement(a: str, b: str, cosine: float, *, matched: float = 0.5, jaccard: float | None = 0.5) -> dict:
    return {
        "a": a,
        "b": b,
        "mean_max_cosine_a_to_b": cosine - 0.05,
        "mean_max_cosine_b_to_a": cosine + 0.05,
        "matched_share_a": matched,
        "matched_share_b": matched + 0.2,
        "mutual_jaccard": jaccard,
        "hungarian_cosine": None,
    }


def level(l0: int, arms: tuple[float, ...], seeds: float) -> tuple[list[dict], list[dict]]:
    """At one L0: Gated and ReLU for each seed, and Gated seed 0 with each other one, of two or more."""
    of_arms = [agreement(f"g{l0}-{seed}", f"r{l0}-{seed}", value) for seed, value in enumerate(arms)]
    return of_arms, [agreement(f"g{l0}-0", f"g{l0}-{seed}", seeds) for seed in range(1, max(2, len(arms)))]


def joined(*parts: tuple[list[dict], list[dict]]) -> tuple[list[dict], list[dict]]:
    return [one for arms, _ in parts for one in arms], [one for _, seeds in parts for one in seeds]


def test_two_levels_by_hand() -> None:
    arms, seeds = joined(level(4, (0.80, 0.82), 0.85), level(32, (0.70, 0.64), 0.65))
    found = agreement_differences(arms, seeds, resamples=DRAWS, seed=0)
    assert [row["name"] for row in found] == list(AGREEMENT)
    assert {(row["kind"], row["pairs_of_arms"], row["pairs_of_seeds"], row["groups"]) for row in found} == {
        ("difference", 4, 2, 2)
    }
    # -0.05 and -0.03, 0.05 and -0.01: the means of the levels are -0.04 and 0.02, either of them twice has 1 / 4. For
    # two groups: 12.706 of Student's t with one degree of freedom over 1.960, and the root of 2.
    wide = 0.03 * 12.706 / 1.960 * 2**0.5
    cosine = found[0]
    assert cosine["difference"] == pytest.approx(-0.01)
    assert [cosine["low"], cosine["high"]] == pytest.approx([-0.01 - wide, -0.01 + wide], rel=1e-3)
    assert not cosine["shown"]


def test_levels_that_are_unevenly_represented_do_not_decide() -> None:
    # Arms agree by 0.02 more than seeds at each L0. Of ten pairs of arms eight are at an L0 where all agree little.
    low = [level(l0, (0.62, 0.62), 0.60) for l0 in (32, 33, 34, 35)]
    high = [agreement("g4-0", "r4-0", 0.92), agreement("g4-1", "r4-1", 0.92)]
    seeds_high = [agreement(f"g4-{a}", f"g4-{b}", 0.90) for a in range(4) for b in range(a)]
    arms, seeds = joined(*low, (high, seeds_high))
    cosine = [(one["mean_max_cosine_a_to_b"] + one["mean_max_cosine_b_to_a"]) / 2 for one in (*arms, *seeds)]
    assert fmean(cosine[: len(arms)]) < fmean(cosine[len(arms) :]) - 0.05
    row = agreement_differences(arms, seeds, resamples=200, seed=0)[0]
    # Equal differences: an interval without width, however far the levels are from each other.
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([0.02] * 3)
    assert row["shown"]
    # All four seeds agree alike, and those pairs without Gated 0 or 1 are beside no pair of arms.
    assert (row["pairs_of_arms"], row["pairs_of_seeds"], row["groups"]) == (10, 4 + 5, 5)


def test_the_interval_is_that_of_all_ways_to_draw_the_groups() -> None:
    # A level weighs as much as it has pairs of arms.
    levels = {4: (0.84, 0.86), 8: (0.74, 0.79, 0.75, 0.76), 16: (0.71, 0.72), 32: (0.48,)}
    yardstick = {4: 0.85, 8: 0.70, 16: 0.66, 32: 0.68}
    arms, seeds = joined(*(level(l0, values, yardstick[l0]) for l0, values in levels.items()))
    differences = {l0: [value - yardstick[l0] for value in values] for l0, values in levels.items()}
    drawn = [fmean(value for l0 in draw for value in differences[l0]) for draw in product(levels, repeat=4)]
    row = agreement_differences(arms, seeds, resamples=DRAWS, seed=0)[0]
    assert row["difference"] == pytest.approx(fmean(value for values in differences.values() for value in values))
    # For four groups: 3.182 of Student's t with 3 degrees of freedom over 1.960, and the root of 4 / 3.
    wider = 3.182 / 1.960 * (4 / 3) ** 0.5
    expected = [row["difference"] + wider * (end - row["difference"]) for end in central(drawn)]
    assert [row["low"], row["high"]] == pytest.approx(expected, abs=0.008)
    assert row["groups"] == 4


def test_of_differences_that_are_none_one_in_twenty_is_shown() -> None:
    """With as few groups as there are L0s in a run."""
    generator = np.random.default_rng(0)
    shown = 0
    for values in generator.normal(0.7, 0.02, size=(1000, 4)):
        arms, seeds = joined(*(level(l0, (value,), 0.7) for l0, value in enumerate(values)))
        shown += agreement_differences(arms, seeds, resamples=200, seed=int(1e6 * values[0]))[0]["shown"]
    assert 25 < shown < 80


def groups(arms: list[tuple[str, str]], seeds: list[tuple[str, str]]) -> int:
    rows = agreement_differences(
        [agreement(*pair, 0.5) for pair in arms], [agreement(*pair, 0.6) for pair in seeds], resamples=10, seed=0
    )
    return rows[0]["groups"]


def test_pairs_that_share_an_sae_are_drawn_together() -> None:
    # Through their pair of seeds; through an SAE of the other arm; through pairs of seeds in a row, whatever the order.
    assert groups([("g0", "r0"), ("g1", "r1")], [("g0", "g1")]) == 1
    assert groups([("g0", "r0"), ("h0", "r0")], [("g0", "g1"), ("h0", "h1")]) == 1
    row = [("g0", "r0"), ("g3", "r3"), ("g1", "r1"), ("g2", "r2")]
    assert groups(row, [("g0", "g1"), ("g1", "g2"), ("g2", "g3")]) == 1
    # Seeds that are beside one pair each link nothing.
    assert groups(row, [("g0", "x0"), ("g1", "x1"), ("g2", "x2"), ("g3", "x3")]) == 4
    assert groups(row, [("g0", "x"), ("g3", "x"), ("g1", "y"), ("y", "g2")]) == 2


def test_the_mean_is_taken_of_the_seeds_that_a_pair_of_arms_contains() -> None:
    arms = [agreement("r0", "g0", 0.5)]
    seeds = [agreement("g0", "g1", 0.6), agreement("g2", "g0", 0.9), agreement("g1", "g2", 0.1)]
    row = agreement_differences(arms, seeds, resamples=10, seed=0)[0]
    assert row["difference"] == pytest.approx(0.5 - 0.75)
    assert (row["pairs_of_arms"], row["pairs_of_seeds"]) == (1, 2)


def test_arms_that_agree_as_seeds_do_show_no_difference() -> None:
    arms, seeds = joined(level(4, (0.8, 0.8), 0.8), level(8, (0.7, 0.7), 0.7))
    for row in agreement_differences(arms, seeds, resamples=200, seed=0):
        assert row["difference"] == row["low"] == row["high"] == 0
        assert not row["shown"]


def test_one_group_has_no_interval_and_shows_nothing() -> None:
    found = agreement_differences(*level(4, (0.80, 0.82), 0.85), resamples=200, seed=0)
    assert found[0]["difference"] == pytest.approx(-0.04)
    assert {(row["low"], row["high"], row["shown"], row["groups"]) for row in found} == {(None, None, False, 1)}


def test_pairs_without_a_number_or_without_seeds_are_left_out() -> None:
    arms = [
        agreement("g0", "r0", 0.5, jaccard=0.2),
        agreement("h0", "s0", 0.6, jaccard=None),
        agreement("i0", "t0", 0.7, jaccard=0.4),
        agreement("j0", "u0", 0.1, jaccard=0.1),
    ]
    seeds = [
        agreement("g0", "g1", 0.8, jaccard=0.5),
        agreement("h0", "h1", 0.8),
        agreement("i0", "i1", 0.8, jaccard=None),
    ]
    cosine, _, jaccard = agreement_differences(arms, seeds, resamples=50, seed=0)
    assert (cosine["difference"], cosine["pairs_of_arms"], cosine["pairs_of_seeds"]) == (pytest.approx(-0.2), 3, 3)
    assert (jaccard["difference"], jaccard["pairs_of_arms"], jaccard["pairs_of_seeds"]) == (pytest.approx(-0.3), 1, 1)
    assert [row["name"] for row in agreement_differences(arms, seeds[2:], resamples=50, seed=0)] == [
        "mean_max_cosine",
        "matched_share",
    ]
    assert agreement_differences(arms, [], resamples=50, seed=0) == []
    assert agreement_differences(arms[3:], seeds, resamples=50, seed=0) == []
