"""What two dictionaries share, against loops, brute force and planted copies."""

import copy
import json
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.inspection import matching
from penstock.inspection.agreement import MATCHED, agreement
from penstock.inspection.matching import (
    MAX_HUNGARIAN,
    best_cosines,
    firing_jaccard,
    hungarian,
    magnitude_slopes,
    mutual_nearest,
    random_null,
)
from penstock.saes import SAE
from penstock.sparse import SparseCode, Support

PERMUTATION = torch.tensor([3, 0, 6, 1, 5, 2, 4])
"""Row j of the copy is row PERMUTATION[j] of the original."""


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_angles(*degrees: float) -> Tensor:
    """Directions in the plane, of different lengths."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1, len(degrees) + 1)[:, None]


def cosine_matrix(W_a: Tensor, W_b: Tensor) -> np.ndarray:
    a, b = W_a.double().numpy(), W_b.double().numpy()
    return np.array([[u @ v / (np.linalg.norm(u) * np.linalg.norm(v)) for v in b] for u in a])


def permuted_copy(W: Tensor) -> Tensor:
    return W[PERMUTATION] * torch.linspace(0.2, 5, 7)[:, None]


def test_best_cosines_by_hand() -> None:
    best = best_cosines(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 4], [1, 0]]))
    torch.testing.assert_close(best.cosine, torch.tensor([1.0, 0.8]))
    assert best.index.tolist() == [1, 0]


@pytest.mark.parametrize("block", [1, 15, 2**23])
def test_best_cosines_are_those_of_a_loop_whatever_the_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "COSINES_AT_ONCE", block)
    W_a, W_b = rows(11, 4), rows(7, 4, seed=1)
    cosines = cosine_matrix(W_a, W_b)
    best = best_cosines(W_a, W_b)
    np.testing.assert_allclose(best.cosine.numpy(), cosines.max(axis=1), atol=1e-6)
    assert best.index.tolist() == cosines.argmax(axis=1).tolist()


def test_an_opposite_direction_is_no_match() -> None:
    best = best_cosines(at_angles(0, 90), at_angles(180))
    torch.testing.assert_close(best.cosine, torch.tensor([-1.0, 0.0]), rtol=0, atol=1e-6)


def test_a_row_of_zeros_has_cosine_zero_with_everything() -> None:
    W_a, W_b = at_angles(0, 90), at_angles(180, 120)
    W_a[1] = 0
    assert best_cosines(W_a, W_b).cosine.tolist() == pytest.approx([-0.5, 0])
    W_b[0] = 0
    best = best_cosines(W_a, W_b)
    assert (best.cosine[0].item(), best.index[0].item()) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cosines_are_float32_of_any_dictionary(dtype: torch.dtype) -> None:
    W = rows(6, 5).to(dtype)
    best = best_cosines(W, W)
    assert best.cosine.dtype == torch.float32
    torch.testing.assert_close(best.cosine, torch.ones(6))


def test_every_method_finds_a_permuted_and_rescaled_copy() -> None:
    W = rows(7, 5)
    inverse = PERMUTATION.argsort()
    expected = torch.stack([torch.arange(7), inverse], dim=1)
    best = best_cosines(W, permuted_copy(W))
    assert torch.equal(best.index, inverse)
    torch.testing.assert_close(best.cosine, torch.ones(7))
    for method in (mutual_nearest, hungarian):
        found = method(W, permuted_copy(W))
        assert torch.equal(found.pairs, expected)
        torch.testing.assert_close(found.cosine, torch.ones(7))


def test_where_two_latents_want_the_same_one_only_the_nearer_is_mutual_and_hungarian_shares_out() -> None:
    # Cosines 0.98 and 0.87 in the first row, 0.77 and 0.17 in the second.
    W_a, W_b = at_angles(0, 50), at_angles(10, -30)
    mutual = mutual_nearest(W_a, W_b)
    assert mutual.pairs.tolist() == [[0, 0]]
    assert mutual.cosine.tolist() == pytest.approx([np.cos(np.deg2rad(10))])
    shared = hungarian(W_a, W_b)
    assert shared.pairs.tolist() == [[0, 1], [1, 0]]
    assert shared.cosine.tolist() == pytest.approx([np.cos(np.deg2rad(30)), np.cos(np.deg2rad(40))])


def test_mutual_nearest_neighbours_are_those_of_a_loop() -> None:
    W_a, W_b = rows(30, 4), rows(20, 4, seed=1)
    cosines = cosine_matrix(W_a, W_b)
    expected = [
        [i, j] for i in range(30) for j in range(20) if cosines[i].argmax() == j and cosines[:, j].argmax() == i
    ]
    found = mutual_nearest(W_a, W_b)
    assert found.pairs.tolist() == expected
    assert 3 < len(expected) < 20
    np.testing.assert_allclose(found.cosine.numpy(), [cosines[i, j] for i, j in expected], atol=1e-6)


@pytest.mark.parametrize(("d_a", "d_b"), [(5, 5), (4, 6), (6, 4)])
def test_hungarian_is_the_best_of_all_matchings(d_a: int, d_b: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "COSINES_AT_ONCE", 2 * d_b)
    W_a, W_b = rows(d_a, 3), rows(d_b, 3, seed=1)
    cosines = cosine_matrix(W_a, W_b)
    if d_a <= d_b:
        matchings = [list(zip(range(d_a), chosen, strict=True)) for chosen in permutations(range(d_b), d_a)]
    else:
        matchings = [sorted(zip(chosen, range(d_b), strict=True)) for chosen in permutations(range(d_a), d_b)]
    best = max(matchings, key=lambda pairs: sum(cosines[pair] for pair in pairs))
    found = hungarian(W_a, W_b)
    assert [tuple(pair) for pair in found.pairs.tolist()] == best
    np.testing.assert_allclose(found.cosine.numpy(), [cosines[pair] for pair in best], atol=1e-6)


def test_hungarian_refuses_what_would_take_too_long() -> None:
    with pytest.raises(ValueError, match="20,001 latents.*20,000.*mutual_nearest"):
        hungarian(torch.ones(2, 1), torch.ones(MAX_HUNGARIAN + 1, 1))


def test_the_null_is_that_of_a_direct_simulation() -> None:
    d_in, d_b = 5, 8
    random = np.random.default_rng(0)
    direct = []
    for _ in range(20_000):
        dictionary = random.normal(size=(d_b, d_in))
        direction = random.normal(size=d_in)
        direct.append((dictionary @ direction / np.linalg.norm(dictionary, axis=1)).max() / np.linalg.norm(direction))
    # Many small dictionaries, since samples of one share what is special about it.
    found = torch.cat([random_null(d_in, d_b, samples=50, seed=seed) for seed in range(400)]).numpy()
    assert found.mean() == pytest.approx(np.mean(direct), abs=0.01)
    for share in (0.05, 0.5, 0.99):
        assert np.quantile(found, share) == pytest.approx(np.quantile(direct, share), abs=0.015)


def test_the_null_in_three_dimensions_is_the_largest_of_uniform_numbers() -> None:
    # A coordinate of a uniform point on the sphere is uniform from -1 to 1 (Archimedes).
    found = torch.cat([random_null(3, 9, samples=50, seed=seed) for seed in range(400)])
    assert found.mean().item() == pytest.approx(2 * 9 / 10 - 1, abs=0.01)


def test_the_null_depends_on_its_seed_alone() -> None:
    assert torch.equal(random_null(6, 40, 30, seed=3), random_null(6, 40, 30, seed=3))
    assert not torch.equal(random_null(6, 40, 30, seed=3), random_null(6, 40, 30, seed=4))
    assert random_null(6, 40, 30, seed=3).shape == (30,)


def code(batch: int, d_sae: int, seed: int, density: float = 0.3) -> SparseCode:
    """A random code: some places of its support hold a zero, and its first latent never fires."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(batch, d_sae, generator=generator, dtype=torch.float64) + 0.1
    dense *= torch.rand(batch, d_sae, generator=generator) < density
    full = SparseCode.from_dense(dense)
    values = full.values * (torch.rand(len(full.values), generator=generator) < 0.9)
    return SparseCode(full.support, values * (full.support.indices > 0))


def all_pairs(d_a: int, d_b: int) -> Tensor:
    """Not in order, and the first of them twice."""
    pairs = torch.cartesian_prod(torch.arange(d_a), torch.arange(d_b)).flip(0)
    return torch.cat([pairs, pairs[:1]])


def test_firing_jaccard_by_hand() -> None:
    a = SparseCode.from_dense(torch.tensor([[1.0, 0], [2, 0], [3, 0], [0, 0]]))
    b = SparseCode.from_dense(torch.tensor([[0.0, 0], [5, 0], [1, 0], [7, 0]]))
    found = firing_jaccard(a, b, torch.tensor([[0, 0], [0, 1], [1, 1]]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0, torch.nan], dtype=torch.float64), equal_nan=True)


def test_firing_jaccard_is_that_of_a_loop() -> None:
    a, b = code(40, 6, seed=0), code(40, 9, seed=1)
    pairs = all_pairs(6, 9)
    fires_a, fires_b = a.to_dense().numpy() != 0, b.to_dense().numpy() != 0
    expected = []
    for i, j in pairs.tolist():
        either = sum(fires_a[t, i] or fires_b[t, j] for t in range(40))
        expected.append(sum(fires_a[t, i] and fires_b[t, j] for t in range(40)) / either if either else np.nan)
    np.testing.assert_allclose(firing_jaccard(a, b, pairs).numpy(), expected, rtol=1e-12)
    assert np.isnan(expected).sum() == 1


def test_magnitude_slopes_are_those_of_a_loop() -> None:
    a, b = code(40, 6, seed=0), code(40, 9, seed=1)
    pairs = all_pairs(6, 9)
    dense_a, dense_b = a.to_dense().numpy(), b.to_dense().numpy()
    found = magnitude_slopes(a, b, pairs)
    for (i, j), slope, tokens in zip(pairs.tolist(), found.slope.tolist(), found.tokens.tolist(), strict=True):
        both = [t for t in range(40) if dense_a[t, i] and dense_b[t, j]]
        assert tokens == len(both)
        if both:
            (expected,), *_ = np.linalg.lstsq(dense_b[both, j][:, None], dense_a[both, i], rcond=None)
            assert slope == pytest.approx(expected, rel=1e-9)
        else:
            assert np.isnan(slope)
    assert found.tokens.min() == 0


def test_a_shrunken_code_has_the_slope_of_its_shrinkage() -> None:
    a = code(50, 8, seed=0)
    b = SparseCode(a.support, 0.8 * a.values)
    pairs = torch.arange(1, 8)[:, None].expand(-1, 2)
    torch.testing.assert_close(magnitude_slopes(a, b, pairs).slope, torch.full((7,), 1.25).double())
    torch.testing.assert_close(magnitude_slopes(b, a, pairs).slope, torch.full((7,), 0.8).double())
    assert torch.equal(magnitude_slopes(a, b, pairs).tokens, a.firing[1:])


def test_slopes_of_a_float32_code_are_summed_in_float64() -> None:
    values = torch.full((20_001,), 1e-5)
    values[0] = 1000.0
    support = Support(torch.arange(20_002), torch.zeros(20_001, dtype=torch.int32), 1)
    same = torch.zeros(1, 2, dtype=torch.int64)
    doubled = values.clone()
    doubled[1:] *= 1e8
    found = magnitude_slopes(SparseCode(support, doubled), SparseCode(support, values), same).slope
    a, b = doubled.double().numpy(), values.double().numpy()
    assert found.item() == pytest.approx(a @ b / (b @ b), rel=1e-9)


def test_nothing_fires_together_in_empty_codes_or_without_pairs() -> None:
    nothing = SparseCode.from_dense(torch.zeros(5, 3))
    pairs = torch.tensor([[0, 1], [2, 2]])
    assert firing_jaccard(nothing, nothing, pairs).isnan().all()
    assert firing_jaccard(code(5, 4, seed=0, density=1), nothing, torch.tensor([[1, 0], [3, 2]])).tolist() == [0, 0]
    assert magnitude_slopes(nothing, code(5, 3, seed=0), pairs[:0]).slope.shape == (0,)


@pytest.mark.parametrize("compare", [firing_jaccard, magnitude_slopes])
def test_codes_of_other_tokens_are_refused(compare: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="40 and 41 tokens.*Encode the same tokens"):
        compare(code(40, 6, seed=0), code(41, 6, seed=0), torch.zeros(1, 2, dtype=torch.int64))


RandomSAE = Callable[..., SAE]


@pytest.fixture
def x() -> Tensor:
    return rows(200, 6, seed=5)


def copied(sae: SAE, *, shrinkage: float = 1.0) -> SAE:
    """The same ReLU SAE with latents in another order and of another scale, firing `shrinkage` times as strongly."""
    copy_of = copy.deepcopy(sae)
    scale = torch.linspace(0.2, 5, sae.d_sae)
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        copy_of.W_enc.copy_(sae.W_enc[:, order] * scale * shrinkage)
        copy_of.get_parameter("b_enc").copy_(sae.get_parameter("b_enc")[order] * scale * shrinkage)
        copy_of.W_dec.copy_(sae.W_dec[order] / scale[:, None])
    return copy_of


def with_dead(sae: SAE, *latents: int) -> SAE:
    with torch.no_grad():
        sae.get_parameter("b_enc")[list(latents)] = -1e4
    return sae


def test_a_shrunken_copy_agrees_in_everything_but_magnitude(random_sae: RandomSAE, x: Tensor) -> None:
    sae = with_dead(random_sae("relu", 6, 16, dtype=torch.float32), 3, 7)
    found: dict[str, Any] = agreement(sae, copied(sae, shrinkage=0.8), x)
    json.dumps(found, allow_nan=False)
    assert found["tokens"] == 200
    for side in "ab":
        assert (found[f"latents_{side}"], found[f"dead_{side}"]) == (14, 2)
        assert found[f"mutual_share_{side}"] == found[f"matched_share_{side}"] == 1
        assert found[f"density_unmatched_{side}"] is found[f"magnitude_unmatched_{side}"] is None
    one = ["mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a", "hungarian_cosine", "hungarian_share", "mutual_jaccard"]
    assert [found[key] for key in one] == pytest.approx([1] * 5, abs=1e-6)
    assert found["slope_pairs"] == 14
    for quartile in ("q25", "median", "q75"):
        assert found[f"slope_a_on_b_{quartile}"] == pytest.approx(1.25, rel=1e-4)
        assert found[f"slope_b_on_a_{quartile}"] == pytest.approx(0.8, rel=1e-4)
    assert found["density_matched_a"] == found["density_matched_b"]
    assert found["magnitude_matched_b"] == pytest.approx(0.8 * found["magnitude_matched_a"], rel=1e-5)


def test_every_number_is_that_of_a_dense_computation(random_sae: RandomSAE, x: Tensor) -> None:
    """Two SAEs that share some latents: from dense codes, with loops over latents."""
    a = with_dead(random_sae("relu", 6, 16, dtype=torch.float32), 5)
    b = with_dead(random_sae("relu", 6, 20, dtype=torch.float32, seed=1), 0, 19)
    with torch.no_grad():
        b.W_dec[2:9] = a.W_dec[4:11] + 0.1 * rows(7, 6, seed=2) * a.W_dec[4:11].norm(dim=1, keepdim=True)
        b.W_enc[:, 2:9] = a.W_enc[:, 4:11]
    found: dict[str, Any] = agreement(a, b, x)

    codes = [(sae.encode(x) * sae.W_dec.norm(dim=1)).detach().double().numpy() for sae in (a, b)]
    alive = [np.flatnonzero((c > 0).any(axis=0)) for c in codes]
    code_a, code_b = (c[:, living] for c, living in zip(codes, alive, strict=True))
    cosines = cosine_matrix(a.W_dec.detach(), b.W_dec.detach())[np.ix_(*alive)]
    d_a, d_b = cosines.shape
    mutual = [(i, cosines[i].argmax()) for i in range(d_a) if cosines[:, cosines[i].argmax()].argmax() == i]
    matched = [pair for pair in mutual if cosines[pair] > MATCHED]
    jaccards, slopes = [], {"a_on_b": [], "b_on_a": []}
    for i, j in mutual:
        either, both = (code_a[:, i] > 0) | (code_b[:, j] > 0), (code_a[:, i] > 0) & (code_b[:, j] > 0)
        jaccards.append(both.sum() / either.sum())
        if (i, j) in matched and both.any():
            dot = code_a[:, i] @ code_b[:, j]
            slopes["a_on_b"].append(dot / (code_b[both, j] @ code_b[both, j]))
            slopes["b_on_a"].append(dot / (code_a[both, i] @ code_a[both, i]))
    assert 5 <= len(matched) < len(mutual) < d_a
    assert (d_a, d_b) == (found["latents_a"], found["latents_b"])
    expected = {
        "dead_a": 16 - d_a,
        "dead_b": 20 - d_b,
        "mean_max_cosine_a_to_b": cosines.max(axis=1).mean(),
        "mean_max_cosine_b_to_a": cosines.max(axis=0).mean(),
        "mutual_share_a": len(mutual) / d_a,
        "mutual_share_b": len(mutual) / d_b,
        "matched_share_a": len(matched) / d_a,
        "matched_share_b": len(matched) / d_b,
        "mutual_jaccard": np.mean(jaccards),
        "slope_pairs": len(slopes["a_on_b"]),
    }
    for way, values in slopes.items():
        for name, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            expected[f"slope_{way}_{name}"] = np.quantile(values, share)
    for side, dense, of_pair in (("a", code_a, 0), ("b", code_b, 1)):
        chosen = {pair[of_pair] for pair in matched}
        for name, group in (("matched", chosen), ("unmatched", set(range(dense.shape[1])) - chosen)):
            expected[f"density_{name}_{side}"] = np.mean([(dense[:, j] > 0).mean() for j in group])
            expected[f"magnitude_{name}_{side}"] = np.mean([dense[dense[:, j] > 0, j].mean() for j in group])
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    one_to_one = hungarian(a.W_dec[alive[0]], b.W_dec[alive[1]]).cosine.numpy()
    assert found["hungarian_cosine"] == pytest.approx(one_to_one.mean(), rel=1e-6)
    assert found["hungarian_share"] == pytest.approx((one_to_one > MATCHED).mean())
    null = random_null(6, d_b, 1000, seed=0).numpy()
    assert found["null_mean_a_to_b"] == pytest.approx(null.mean(), rel=1e-5)
    assert found["null_q99_a_to_b"] == pytest.approx(np.quantile(null, 0.99), rel=1e-5)
    assert found["null_mean_b_to_a"] == pytest.approx(random_null(6, d_a, 1000, seed=0).mean().item(), rel=1e-5)


def test_two_random_dictionaries_agree_as_far_as_chance(random_sae: RandomSAE) -> None:
    a, b = (random_sae("gated", 32, 200, dtype=torch.float32, seed=seed) for seed in (0, 1))
    found: dict[str, Any] = agreement(a, b, rows(50, 32))
    for way in ("a_to_b", "b_to_a"):
        assert found[f"mean_max_cosine_{way}"] == pytest.approx(found[f"null_mean_{way}"], abs=0.02)
        assert found[f"null_mean_{way}"] < found[f"null_q99_{way}"] < MATCHED
    assert found["mutual_share_a"] == pytest.approx(0.5, abs=0.1)
    assert found["hungarian_share"] == found["matched_share_a"] == found["slope_pairs"] == 0
    assert found["slope_a_on_b_median"] is found["density_matched_a"] is None


def test_a_latent_that_writes_nothing_counts_as_dead(random_sae: RandomSAE, x: Tensor) -> None:
    sae = random_sae("relu", 6, 16, dtype=torch.float32)
    whole: dict[str, Any] = agreement(sae, sae, x)
    with torch.no_grad():
        sae.W_dec[2] = 0
    silenced: dict[str, Any] = agreement(sae, sae, x)
    assert silenced["dead_a"] == whole["dead_a"] + 1


def test_without_a_hungarian_matching_the_rest_is_still_said(
    random_sae: RandomSAE, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = random_sae("relu", 6, 16, dtype=torch.float32)
    monkeypatch.setattr("penstock.inspection.agreement.MAX_HUNGARIAN", 5)
    found: dict[str, Any] = agreement(sae, sae, x)
    assert found["hungarian_cosine"] is found["hungarian_share"] is None
    assert found["matched_share_a"] == 1


def test_saes_that_cannot_be_compared_are_refused(random_sae: RandomSAE, x: Tensor) -> None:
    sae = random_sae("relu", 6, 16, dtype=torch.float32)
    with pytest.raises(ValueError, match="d_in 6 and sae_b 5.*same site"):
        agreement(sae, random_sae("relu", 5, 16, dtype=torch.float32), x)
    with pytest.raises(ValueError, match="No latent of sae_b fires on the 200 tokens"):
        agreement(sae, with_dead(random_sae("relu", 6, 16, dtype=torch.float32), *range(16)), x)
