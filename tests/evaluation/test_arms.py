"""The key of an arm, from every kind of record, and what is a control."""

from dataclasses import dataclass, replace

import pytest

from penstock.evaluation.arms import CONTROLS, Arm, is_control
from penstock.saes import ARCHITECTURES, LearningRate, Settings, Training

ABOUT = {"arch": "gated", "recipe": "paper", "d_sae": 64, "lr": 1e-3, "lr_rule": "given", "seed": 3, "site": "s.0"}
RULE = {**ABOUT, "lr_rule": "0.0045 * sqrt(...)"}


def test_a_learning_rate_sets_arms_apart_only_if_it_was_asked_for() -> None:
    assert Arm.of(ABOUT) == Arm("gated", "paper", 64, 1e-3)
    assert Arm.of(RULE) == Arm("gated", "paper", 64) == Arm.of({**RULE, "lr": 2e-3, "seed": 0, "site": "s.1"})


@pytest.mark.parametrize("about", [ABOUT, RULE])
def test_an_arm_comes_back_from_what_is_written_of_it(about: dict) -> None:
    arm, other = Arm.of(about), Arm("relu", "paper_clipped", 96, 5e-3)
    pair = arm.side_keys("a") | other.side_keys("b")
    assert (Arm.at_side(pair, "a"), Arm.at_side(pair, "b")) == (arm, other)
    comparison = arm.role_keys("arm") | other.role_keys("baseline")
    assert (Arm.in_role(comparison, "arm"), Arm.in_role(comparison, "baseline")) == (arm, other)


def test_a_rate_that_a_rule_chose_is_not_written() -> None:
    assert Arm.of(RULE).side_keys("a") == {"arch_a": "gated", "recipe_a": "paper", "d_sae_a": 64}
    assert Arm.of(RULE).role_keys("arm") == {"arm": "gated", "arm_recipe": "paper", "arm_d_sae": 64}


@pytest.mark.parametrize("arch", CONTROLS)
def test_controls_are_told_by_their_arch(arch: str) -> None:
    assert is_control({"arch": arch})


def test_an_sae_that_does_not_say_its_recipe_is_no_control() -> None:
    assert not is_control({"arch": "relu", "recipe": None}) and not is_control({})


def test_own_settings_set_arms_apart_unless_they_decide_l0(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class GroupedSettings(Settings):
        k: int = 8
        groups: tuple[int, ...] = (2, 4)

    training = Training(
        learning_rate=LearningRate(base=1e-3), aims=(), own_l0=lambda settings: settings.k, l0_settings=("k",)
    )
    architecture = replace(ARCHITECTURES["relu"], settings=GroupedSettings, training=training)
    monkeypatch.setitem(ARCHITECTURES, "grouped", architecture)
    about = {**RULE, "arch": "grouped"}
    arm = Arm.of({**about, "settings": GroupedSettings(k=16)})
    assert arm == Arm.of({**about, "settings": {"k": 8, "groups": [2, 4]}})
    assert arm != Arm.of({**about, "settings": GroupedSettings(groups=(4,))})
    assert arm.settings == "groups [2, 4]"
    assert Arm.at_side(arm.side_keys("a"), "a") == Arm.in_role(arm.role_keys("arm"), "arm") == arm
    without_k = replace(training, l0_settings=None)
    monkeypatch.setitem(ARCHITECTURES, "grouped", replace(architecture, training=without_k))
    assert Arm.of({**about, "settings": GroupedSettings(groups=(4,))}).settings is None
    steered = Training(learning_rate=LearningRate(base=1e-3), initial_coef=0.1)
    monkeypatch.setitem(ARCHITECTURES, "grouped", replace(architecture, training=steered))
    assert Arm.of({**about, "settings": GroupedSettings()}).settings == "k 8, groups [2, 4]"


def test_arms_with_and_without_a_rate_can_be_sorted() -> None:
    arms = [Arm("gated", "paper", 64, 1e-3), Arm("gated", "paper", 64), Arm("gated", None, None)]
    assert sorted(arms, key=lambda arm: arm.order)[0] == arms[2]
