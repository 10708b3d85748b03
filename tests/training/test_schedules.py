"""Schedules at chosen steps by hand."""

import math

import pytest

from penstock.training.schedules import Schedule


def schedule(dips: tuple[int, ...] = (), **changes: int) -> Schedule:
    lengths = {"num_steps": 100, "warmup": 10, "decay": 20, "sparsity_warmup": 5, "dip_length": 8} | changes
    return Schedule(dips=dips, dip=0.1, **lengths)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (81, 0.95), (90, 0.5), (99, 0.05)],
)
def test_the_learning_rate_rises_stays_and_falls(step: int, factor: float) -> None:
    assert schedule().lr_factor(step) == pytest.approx(factor)


def test_without_warm_up_and_decay_the_learning_rate_is_constant() -> None:
    flat = schedule(warmup=0, decay=0)
    assert {flat.lr_factor(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (29, 1.0),
        (30, 0.1),
        (32, 0.1 + 0.9 * (1 - math.cos(math.pi / 4)) / 2),
        (34, 0.55),
        (37, 0.1 + 0.9 * (1 - math.cos(math.pi * 7 / 8)) / 2),
        (38, 1.0),
    ],
)
def test_after_resampling_the_learning_rate_dips_and_returns_along_a_cosine(step: int, factor: float) -> None:
    assert schedule(dips=(30,)).lr_factor(step) == pytest.approx(factor)


def test_the_last_of_two_dips_counts_and_dips_multiply_with_the_rest() -> None:
    assert schedule(dips=(30, 33)).lr_factor(33) == pytest.approx(0.1)
    assert schedule(dips=(30, 33)).lr_factor(37) == pytest.approx(0.55)
    assert schedule(dips=(90,)).lr_factor(90) == pytest.approx(0.5 * 0.1)


def test_the_sparsity_coefficient_rises_linearly() -> None:
    factors = [schedule().sparsity_factor(step) for step in range(7)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert schedule(sparsity_warmup=0).sparsity_factor(0) == 1.0


@pytest.mark.parametrize(
    ("changes", "dips", "steady"),
    [
        ({}, (), range(40, 80)),
        ({"decay": 0}, (), range(50, 100)),
        ({"warmup": 60}, (), range(60, 80)),
        ({"sparsity_warmup": 55}, (), range(55, 80)),
        ({}, (20, 50), range(58, 80)),
        ({"warmup": 50, "decay": 50}, (), range(50, 50)),
    ],
)
def test_steady_steps_are_the_second_half_before_the_decay(
    changes: dict[str, int], dips: tuple[int, ...], steady: range
) -> None:
    assert schedule(dips, **changes).steady_steps() == steady
