"""Shrinkage, against the toy's exact minimum, planted factors and loops over dense codes."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.inspection.agreement import MATCHED
from penstock.inspection.matching import MagnitudeSums, magnitude_slopes, magnitude_sums
from penstock.runs.finished_run import FinishedRun
from penstock.saes import SAE, ReLUSAE
from penstock.sparse import SparseCode
from penstock.studies.shrinkage import (
    ShrinkageConfig,
    matched_magnitudes,
    ratio_summary,
    shrinkage,
    toy_rows,
    trained_toy,
)

ANY = ShrinkageConfig(toy_coefs=(), most_apart=1000.0, min_together=1, resamples=20)


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(200, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def sums_of(ratios: list[float], tokens: int = 50) -> MagnitudeSums:
    """Latents whose magnitudes in b are exactly `ratios` times those in a."""
    b = torch.tensor(ratios, dtype=torch.float64)
    return MagnitudeSums(4 * b, torch.full_like(b, 4), 4 * b.square(), torch.full((len(ratios),), tokens))


@pytest.mark.parametrize("coef", [0.25, 1.9])
def test_the_penalty_shrinks_the_toy_of_a_relu_sae_and_not_that_of_a_gated_one(coef: float) -> None:
    assert trained_toy("relu", coef) == pytest.approx(1 - coef / 2, abs=1e-6)
    assert trained_toy("gated", coef) == pytest.approx(1, abs=1e-6)


def test_at_coefficient_one_the_paper_s_toy_has_half_its_feature() -> None:
    rows = {row["arch"]: row for row in toy_rows((1.0,))}
    assert rows["relu"]["magnitude"] == pytest.approx(0.5, abs=1e-6)
    assert rows["gated"]["magnitude"] == pytest.approx(1, abs=1e-6)
    assert [rows[arch]["exact"] for arch in ("relu", "gated")] == [0.5, 1.0]
    # The minimum of (1 - f)^2 + f on a grid, without any calculus.
    f = np.linspace(0, 2, 20_001)
    assert f[np.argmin((1 - f) ** 2 + f)] == pytest.approx(rows["relu"]["exact"])


def test_sums_over_tokens_where_both_fire_by_hand() -> None:
    code_a = SparseCode.from_dense(torch.tensor([[1.0, 0], [2, 5], [3, 0]]))
    code_b = SparseCode.from_dense(torch.tensor([[0.0, 7], [0, 4], [0, 6]]))
    sums = magnitude_sums(code_a, code_b, torch.tensor([[0, 1], [1, 1], [0, 0]]))
    assert sums.ab.tolist() == [1 * 7 + 2 * 4 + 3 * 6, 5 * 4, 0]
    assert sums.aa.tolist() == [1 + 4 + 9, 25, 0]
    assert sums.bb.tolist() == [49 + 16 + 36, 16, 0]
    assert sums.tokens.tolist() == [3, 1, 0]
    assert sums.ab.dtype == torch.float64
    slopes = magnitude_slopes(code_a, code_b, torch.tensor([[0, 1], [1, 1]]))
    assert slopes.slope.tolist() == [33 / 101, 20 / 16]


def shrunken(d_sae: int = 8) -> tuple[ReLUSAE, ReLUSAE, Tensor]:
    """An SAE, a copy with its latents in reverse that report less and less of the same features, and by how much.

    The copy's decoder rows have other norms, which its magnitudes make up for."""
    original = ReLUSAE(6, d_sae, generator=torch.Generator().manual_seed(0)).double()
    copy = ReLUSAE(6, d_sae).double()
    factors = torch.linspace(0.4, 1.15, d_sae, dtype=torch.float64)
    norms = torch.linspace(3, 0.5, d_sae, dtype=torch.float64)
    with torch.no_grad():
        copy.W_enc.copy_((original.W_enc * factors / norms).flip(1))
        copy.W_dec.copy_((original.W_dec * norms[:, None]).flip(0))
    return original, copy, factors


def test_planted_shrinkage_is_found_latent_by_latent(x: Tensor) -> None:
    original, copy, factors = shrunken()
    found = ratio_summary(matched_magnitudes(original, copy, x), min_together=1, resamples=200, seed=0)
    assert found["latents"] == len(factors)
    np.testing.assert_allclose(found["ratios"], factors.tolist(), atol=6e-5)
    for key, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        assert found[key] == pytest.approx(np.quantile(factors.numpy(), share))
    assert found["share_below_1"] == (factors < 1).double().mean().item() == 0.75
    # Proportional magnitudes: both slopes say the same.
    assert found["slope_b_on_a_median"] == pytest.approx(found["median"])
    assert found["slope_a_on_b_median"] == pytest.approx(np.median(1 / factors.numpy()))
    assert found["low"] < found["median"] < found["high"]


def test_magnitudes_are_those_of_a_dense_loop_over_living_latents(random_sae: Callable[..., SAE]) -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    a, b = random_sae("gated", 16, 14), random_sae("relu", 16, 18, seed=1)
    with torch.no_grad():
        # The nearest rows of all: dead in b, so that they must not be matched.
        b.W_dec[:2] = a.W_dec[:2]
        b.get_parameter("b_enc")[:2] = -1e6
        b.W_dec[4:10] = a.W_dec[4:10] + 0.1 * b.W_dec[4:10]
    dense = [(sae.encode(x) * sae.W_dec.norm(dim=1)).detach().numpy() for sae in (a, b)]
    units = [(sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach().numpy() for sae in (a, b)]
    living = [np.flatnonzero((code > 0).any(axis=0)) for code in dense]
    expected, too_far = [], 0
    for i in living[0]:
        j = max(living[1], key=lambda j: units[0][i] @ units[1][j])
        back = max(living[0], key=lambda k: units[0][k] @ units[1][j])
        too_far += back == i and units[0][i] @ units[1][j] <= MATCHED
        if back == i and units[0][i] @ units[1][j] > MATCHED:
            both = (dense[0][:, i] > 0) & (dense[1][:, j] > 0)
            u, v = dense[0][both, i], dense[1][both, j]
            expected.append((u @ v, u @ u, v @ v, both.sum()))
    assert len(expected) >= 5
    assert too_far
    assert len(living[1]) < b.d_sae
    found = matched_magnitudes(a, b, x)
    for values, sums in zip(zip(*expected, strict=True), found, strict=True):
        np.testing.assert_allclose(sums.numpy(), values, rtol=1e-9)


def test_noise_does_not_pull_the_ratio_towards_zero_as_it_does_the_slopes() -> None:
    generator = torch.Generator().manual_seed(0)
    feature = 5 + 2 * torch.rand(5000, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(5000, 2, generator=generator, dtype=torch.float64)
    codes = [SparseCode.from_dense(0.7**place * (feature + noise[:, [place]])) for place in (0, 1)]
    found = ratio_summary(magnitude_sums(*codes, torch.tensor([[0, 0]])), min_together=20, resamples=5, seed=0)
    assert found["median"] == pytest.approx(0.7, rel=0.01)
    assert found["slope_b_on_a_median"] < 0.99 * found["median"]
    assert found["slope_a_on_b_median"] < 0.99 / found["median"]


def test_latents_that_hardly_fire_together_are_left_out() -> None:
    sums = sums_of([0.5, 0.8, 2.0])._replace(tokens=torch.tensor([20, 19, 21]))
    found = ratio_summary(sums, min_together=20, resamples=5, seed=0)
    assert found["ratios"] == [0.5, 2.0]
    nothing = ratio_summary(sums, min_together=22, resamples=5, seed=0)
    assert nothing["latents"] == 0
    assert nothing["ratios"] == []
    assert {nothing[key] for key in nothing if key not in ("latents", "ratios")} == {None}


def test_the_interval_is_that_of_the_median_over_latents() -> None:
    ratios = np.random.default_rng(1).normal(0.8, 0.1, size=400).tolist()
    found = ratio_summary(sums_of(ratios), min_together=1, resamples=1000, seed=0)
    # Of the median of n normal numbers: sigma * sqrt(pi / 2n).
    width = 2 * 1.96 * 0.1 * np.sqrt(np.pi / 800)
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.35)
    assert found == ratio_summary(sums_of(ratios), min_together=1, resamples=1000, seed=0)
    assert found != ratio_summary(sums_of(ratios), min_together=1, resamples=1000, seed=1)


def test_an_sae_that_never_fires_shares_nothing(x: Tensor) -> None:
    original, dead, _ = shrunken()
    with torch.no_grad():
        dead.b_enc.fill_(-1e6)
    assert len(matched_magnitudes(original, dead, x).tokens) == 0
    assert len(matched_magnitudes(dead, original, x).tokens) == 0


def test_gated_stands_against_relu_in_pairs_of_a_run_and_seeds_against_seeds(finished: FinishedRun) -> None:
    reverse = dict(reversed(list(finished.saes.items())))
    for saes in (finished.saes, reverse):
        rows = shrinkage(replace(finished, saes=saes), ANY)
        assert json.loads(json.dumps(rows)) == rows
        assert {row["kind"] for row in rows} == {"pair"}
        assert [(row["a"], row["b"]) for row in rows if row["compared"] == "arms"] in (
            [("gated0", "relu0"), ("gated1", "relu1")],
            [("gated1", "relu1"), ("gated0", "relu0")],
        )
        assert {frozenset((row["a"], row["b"])) for row in rows if row["compared"] == "seeds"} == {
            frozenset(("gated0", "gated1")),
            frozenset(("relu0", "relu1")),
        }
        for row in rows:
            assert (row["arch_a"], row["seed_b"]) == (row["a"][:-1], int(row["b"][-1]))


def test_numbers_of_a_pair_are_of_the_held_out_tokens(finished: FinishedRun) -> None:
    row = next(row for row in shrinkage(finished, ANY) if row["a"] == "gated0" and row["compared"] == "arms")
    rows = finished.held_out()
    x = finished.model.activations(rows.tokens, ["resid_post.0"])["resid_post.0"][rows.mask]
    for side in "ab":
        sae = finished.saes[row[side]]
        x_hat = sae(x).double()
        gamma = (x_hat.square().sum() / (x.double() * x_hat).sum()).item()
        assert row[f"gamma_{side}"] == pytest.approx(gamma, rel=1e-4)
        assert row[f"l0_{side}"] == pytest.approx((sae.encode(x) > 0).sum(dim=1).double().mean().item(), rel=1e-3)
    sums = matched_magnitudes(finished.saes[row["a"]], finished.saes[row["b"]], x)
    assert row["latents"] == int((sums.tokens >= 1).sum()) > 0


def test_equal_widths_come_first_and_two_arms_of_one_architecture_are_not_compared(finished: FinishedRun) -> None:
    about = dict(finished.about)
    about["relu1"] = {**about["relu0"], "d_sae": 48}
    about["gated1"] = {**about["gated0"], "recipe": "norm_weighted"}
    order = ("gated1", "relu1", "gated0", "relu0")
    run = replace(finished, saes={name: finished.saes[name] for name in order}, about=about)
    found = [(row["a"], row["b"]) for row in shrinkage(run, ANY)]
    assert set(found[:2]) == {("gated0", "relu0"), ("gated1", "relu0")}
    assert set(found[2:]) == {("gated0", "relu1"), ("gated1", "relu1")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"toy_coefs": (1.0, 2.0)}, "out of range at 2.0"),
        ({"toy_coefs": (-0.1,)}, "out of range at -0.1"),
        ({"most_apart": 0.9}, "most_apart=0.9 is out of range"),
        ({"min_together": 0}, "min_together=0 is out of range"),
        ({"resamples": 0}, "resamples=0 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShrinkageConfig(**settings)  # type: ignore[arg-type]
