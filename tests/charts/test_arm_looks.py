"""Arms: what belongs together and how it looks."""

from typing import Any

import pytest

from penstock.charts.arm_looks import COLORS, DARK_COLORS, SHAPES, arm_index, find_arms


def record(arch: str, recipe: str | None = "paper", d_sae: int = 1024) -> dict[str, Any]:
    return {"arch": arch, "recipe": recipe, "d_sae": d_sae}


def test_records_of_one_architecture_recipe_and_width_are_one_arm() -> None:
    records = [record("relu"), record("gated"), record("relu"), record("pca", None)]
    arms = find_arms(records)
    assert [arm.label for arm in arms] == ["Gated", "ReLU"]
    assert [arm_index(item, arms) for item in records] == [1, 0, 1, None]


def test_labels_name_only_what_differs() -> None:
    widths = find_arms([record("gated"), record("gated", d_sae=4096), record("relu")])
    assert [arm.label for arm in widths] == ["Gated (d_sae 1,024)", "Gated (d_sae 4,096)", "ReLU"]
    recipes = find_arms([record("gated"), record("gated", "norm_weighted")])
    assert [arm.label for arm in recipes] == ["Gated (norm_weighted)", "Gated (paper)"]
    asked = [record("gated") | {"lr": lr, "lr_rule": "given"} for lr in (0.01, 0.003)]
    rates = find_arms(asked)
    assert [arm.label for arm in rates] == ["Gated (lr 0.003)", "Gated (lr 0.01)"]
    assert [arm_index(item, rates) for item in asked] == [1, 0]
    # A rule's rates differ between sites, and set nothing apart.
    assert len(find_arms([record("gated") | {"lr": lr, "lr_rule": "a rule"} for lr in (0.01, 0.003)])) == 1


def test_an_architecture_looks_the_same_in_every_run() -> None:
    alone = find_arms([record("relu")])[0]
    together = find_arms([record("gated"), record("relu")])[1]
    assert alone.slot == together.slot


def test_every_architecture_of_a_run_has_its_own_colour_and_shape() -> None:
    archs = ["gated", "relu", "jumprelu", "a", "b", "c", "d"]
    slots = [arm.slot for arm in find_arms([record(arch) for arch in archs])]
    assert len(set(slots)) == len(archs) == len(SHAPES) == len(COLORS) == len(DARK_COLORS)


@pytest.mark.parametrize(("colors", "paper", "least"), [(COLORS, "#ffffff", 4.5), (DARK_COLORS, "#14171a", 6.0)])
def test_colours_stand_out_from_the_page(colors: tuple[str, ...], paper: str, least: float) -> None:
    def luminance(color: str) -> float:
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in colors:
        low, high = sorted([luminance(color), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= least, color
