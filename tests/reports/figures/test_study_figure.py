"""Figures of the studies whose records are rows: what is drawn, from records written by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.axes
import pytest

from penstock.charts.arm_looks import COLORS
from penstock.reports.figures import study_figure
from penstock.reports.figures.study_figure import write_study_figure
from penstock.studies import STUDIES

GATED, RELU = COLORS[0], COLORS[1]
Record = dict[str, Any]
Drawn = dict[str, list[dict[str, Any]]]


def sae(arch: str, l0: float, seed: int = 0, d_sae: int = 64, site: str = "resid_post.2", **changes: Any) -> Record:
    about = {"name": f"{arch}-{l0}-{seed}", "arch": arch, "recipe": "paper", "site": site, "d_sae": d_sae}
    return {**about, "seed": seed, "l0": l0, **changes}


def pair(a: str, b: str, l0: float, **changes: Any) -> Record:
    about = {"a": f"{a}-x", "b": f"{b}-x", "arch_a": a, "arch_b": b, "site": "resid_post.2"}
    return {**about, "l0_a": l0 - 1, "l0_b": l0 + 1, **changes}


def toy(arch: str) -> list[Record]:
    return [
        {"kind": "toy", "arch": arch, "sparsity_coef": coef, "magnitude": exact + 1e-4, "exact": exact}
        for coef, exact in ((1.0, 0.5), (0.5, 0.75))
    ]


def shrunken(compared: str, a: str, b: str, l0: float, **changes: Any) -> Record:
    summary = {"ratios": [0.5, 0.8, 2.0], "median": 0.8, "low": 0.7, "high": 0.95}
    return pair(a, b, l0, kind="pair", compared=compared, arch_a=a, arch_b=b, **(summary | changes))


def shared(kind: str, a: str, b: str, l0: float, cosine: float | None = 0.5) -> Record:
    cosines = {"mean_max_cosine_a_to_b": cosine, "mean_max_cosine_b_to_a": 0.7 if cosine else None}
    null = {"null_mean_a_to_b": 0.2, "null_mean_b_to_a": 0.3}
    return pair(a, b, l0, kind=kind, **cosines, **null, matched_share_a=0.6, matched_share_b=0.4)


def judged(arch: str, l0: float, share: float | None, seed: int = 0) -> Record:
    ends = {"low": None, "high": None} if share is None else {"low": share - 0.1, "high": share + 0.2}
    return sae(arch, l0, seed, kinds={"token": {"share": share, **ends}, "context": {"share": 0.5, **ends}})


SHRINKAGE = [
    *toy("relu"),
    *toy("gated"),
    shrunken("arms", "gated", "relu", 4.0),
    shrunken("arms", "gated", "relu", 16.0),
    shrunken("seeds", "relu", "relu", 4.0, ratios=[1.0], median=1.0, low=1.0, high=1.0),
]
DICTIONARIES = [
    shared("arms", "gated", "relu", 8.0),
    shared("seeds", "gated", "gated", 8.0, cosine=0.9),
    shared("seeds", "relu", "relu", 8.0),
]
CONCEPTS = [judged("gated", 4.0, 0.3), judged("gated", 4.4, 0.5, seed=1), judged("relu", 4.2, None)]
COST = [
    sae("gated", 4.0, step_seconds=0.003, encode_seconds=0.002, encode_seconds_as_jumprelu=0.0015),
    sae("relu", 4.0, step_seconds=0.002, encode_seconds=0.001),
    sae("relu", 4.0, d_sae=96, step_seconds=0.004, encode_seconds=0.003),
]
ALL = {"shrinkage": SHRINKAGE, "dictionaries": DICTIONARIES, "concepts": CONCEPTS, "cost": COST}


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[Record]], Drawn]:
    """Draws a study's figure, not saved; returns by panel's title what each line is of, "not measured" being one."""
    drawn: Drawn = {}

    def unsaved(make: Callable[[], object], path: Path) -> Path:
        make()
        return path.with_suffix(".png")

    monkeypatch.setattr(study_figure, "drawn", unsaved)

    def watch(method: str) -> None:
        original = getattr(matplotlib.axes.Axes, method)

        def watched(self: matplotlib.axes.Axes, *args: Any, **kwargs: Any) -> Any:
            if method != "text" or args[2] == "not measured":
                x, y = ([], []) if method == "text" else (list(args[0]), list(args[1]))
                title = self.get_title()
                label = kwargs.get("label", "not measured" if method == "text" else method)
                drawn.setdefault(title, []).append({**kwargs, "x": x, "y": y, "label": label})
            return original(self, *args, **kwargs)

        monkeypatch.setattr(matplotlib.axes.Axes, method, watched)

    for method in ("errorbar", "step", "text"):
        watch(method)

    def made(study: str, records: list[Record]) -> Drawn:
        drawn.clear()
        assert write_study_figure(tmp_path, STUDIES[study], records) == tmp_path / "studies" / study / "figure.png"
        return dict(drawn)

    return made


def labels(lines: list[dict[str, Any]]) -> list[str]:
    return [line["label"] for line in lines]


def test_the_toy_and_the_pairs_are_drawn_each_in_its_place(draw: Callable[..., Drawn]) -> None:
    drawn = draw("shrinkage", SHRINKAGE)
    ratios, medians = drawn["Magnitudes of shared latents, resid_post.2"], drawn["Median ratio, resid_post.2"]
    assert labels(medians) == ["ReLU (b) against Gated (a)", "seeds of ReLU"]
    assert [line["color"] for line in medians] == [line["color"] for line in ratios]
    assert medians[0]["color"] not in COLORS
    assert medians[1]["color"] == RELU
    # Pooled over both L0s, and as a distribution.
    assert ratios[0]["x"] == [0.5, 0.5, 0.8, 0.8, 2.0, 2.0]
    assert ratios[0]["y"] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert medians[0]["y"] == [0.8, 0.8]
    below, above = medians[0]["yerr"]
    assert below == pytest.approx([0.1, 0.1])
    assert above == pytest.approx([0.15, 0.15])


def test_pairs_are_told_apart_by_arm_and_stand_at_the_mean_of_their_l0s(draw: Callable[..., Drawn]) -> None:
    drawn = draw("dictionaries", DICTIONARIES)
    cosine, matched = drawn["Mean max cosine, resid_post.2"], drawn["Share of latents matched, resid_post.2"]
    assert labels(cosine) == [
        "ReLU (b) against Gated (a)",
        "seeds of Gated",
        "seeds of ReLU",
        "cosine of random directions",
    ]
    assert [line["color"] for line in cosine[1:3]] == [GATED, RELU]
    assert [line["y"] for line in cosine] == [
        [pytest.approx(mean)] for mean in ((0.5 + 0.7) / 2, (0.9 + 0.7) / 2, 0.6, (0.2 + 0.3) / 2)
    ]
    assert [line["x"] for line in cosine] == [[8.0]] * 4
    assert [line["y"] for line in matched] == [[0.5]] * 3


def test_widths_are_told_apart_where_the_records_say_them(draw: Callable[..., Drawn]) -> None:
    about = {"arch_a": "gated", "arch_b": "relu", "d_sae_a": 64}
    records = [{**shared("arms", "some", "other", 8.0), **about, "d_sae_b": width} for width in (64, 96)]
    records.append(
        {**shared("arms", "one", "two", 8.0), "arch_a": "relu", "arch_b": "relu", "d_sae_a": 64, "d_sae_b": 64}
    )
    found = labels(draw("dictionaries", records)["Share of latents matched, resid_post.2"])
    assert found == [
        "ReLU (d_sae 64) (b) against Gated (a)",
        "ReLU (d_sae 96) (b) against Gated (a)",
        "two arms of ReLU (d_sae 64)",
    ]


def test_kinds_of_concept_have_a_panel_each_with_the_mean_over_seeds(draw: Callable[..., Drawn]) -> None:
    drawn = draw("concepts", CONCEPTS)
    assert set(drawn) == {"token, resid_post.2", "context, resid_post.2"}
    (gated,) = drawn["token, resid_post.2"]
    assert gated["label"] == "Gated"
    assert gated["y"] == [pytest.approx(0.4)]
    assert gated["x"] == [pytest.approx(4.2)]
    assert [ends[0] for ends in gated["yerr"]] == pytest.approx([0.1, 0.2])
    assert labels(drawn["context, resid_post.2"]) == ["Gated", "ReLU"]


def test_seeds_are_averaged_and_targets_are_not(draw: Callable[..., Drawn]) -> None:
    records = [judged("gated", l0, 0.1 * place) for place, l0 in enumerate((32.0, 8.0, 33.0, 4.0, 3.9), start=1)]
    (gated,) = draw("concepts", records)["token, resid_post.2"]
    assert gated["x"] == pytest.approx([3.95, 8.0, 32.5])
    assert gated["y"] == pytest.approx([0.45, 0.2, 0.2])


def test_an_exported_gated_sae_is_a_dashed_line_of_its_colour(draw: Callable[..., Drawn]) -> None:
    drawn = draw("cost", COST)
    step, encode = drawn["Training step, resid_post.2"], drawn["Encoding, resid_post.2"]
    assert labels(step) == ["Gated", "ReLU (d_sae 64)", "ReLU (d_sae 96)"]
    assert [line["y"] for line in step] == [[3.0], [2.0], [4.0]]
    assert labels(encode) == [*labels(step), "Gated, exported to JumpReLU"]
    assert encode[-1]["y"] == [1.5]
    assert (encode[-1]["color"], encode[-1]["linestyle"]) == (GATED, "--")
    assert "--" not in [line["linestyle"] for line in encode[:-1]]


@pytest.mark.parametrize("study", ALL)
def test_every_site_has_its_own_panels(study: str, draw: Callable[..., Drawn]) -> None:
    one = draw(study, ALL[study])
    elsewhere = [{**record, "site": "mlp_out.0"} if "site" in record else record for record in ALL[study]]
    both = draw(study, ALL[study] + [record for record in elsewhere if "site" in record])
    titles = {title.replace("resid_post.2", "mlp_out.0") for title in one}
    assert set(both) == set(one) | titles
    assert all(labels(both[title.replace("resid_post.2", "mlp_out.0")]) == labels(one[title]) for title in one)


@pytest.mark.parametrize(
    ("study", "records", "titles"),
    [
        (
            "shrinkage",
            [shrunken("arms", "gated", "relu", 4.0, ratios=[], median=None, low=None, high=None)],
            ["Toy: one latent, x = 1", "Magnitudes of shared latents, resid_post.2", "Median ratio, resid_post.2"],
        ),
        (
            "shrinkage",
            toy("relu"),
            ["Magnitudes of shared latents, no pair of SAEs", "Median ratio, no pair of SAEs"],
        ),
        (
            "dictionaries",
            [pair("gated", "relu", 4.0, kind="arms", matched_share_a=None)],
            ["Mean max cosine, resid_post.2", "Share of latents matched, resid_post.2"],
        ),
        ("concepts", [judged("relu", 4.0, None)], ["token, resid_post.2"]),
        ("concepts", [sae("relu", 4.0, kinds={"token": {"share": None}})], ["token, resid_post.2"]),
        ("cost", [sae("relu", 4.0)], ["Training step, resid_post.2", "Encoding, resid_post.2"]),
        ("cost", [sae("relu", 0.0, step_seconds=0.1)], ["Training step, resid_post.2"]),
    ],
)
def test_a_panel_without_values_says_so(
    study: str, records: list[Record], titles: list[str], draw: Callable[..., Drawn]
) -> None:
    drawn = draw(study, records)
    for title in titles:
        assert labels(drawn[title]) == ["not measured"]


def test_a_missing_value_leaves_out_its_point_alone(draw: Callable[..., Drawn]) -> None:
    records = [sae("relu", l0, step_seconds=seconds) for l0, seconds in ((4.0, 0.1), (8.0, None), (16.0, 0.3))]
    (line,) = draw("cost", records)["Training step, resid_post.2"]
    assert (line["x"], line["y"]) == ([4.0, 16.0], pytest.approx([100, 300]))


@pytest.mark.parametrize("study", ALL)
def test_a_figure_is_written_as_png_and_svg(study: str, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / study
    folder.mkdir(parents=True)
    png = write_study_figure(tmp_path, STUDIES[study], ALL[study])
    assert png == folder / "figure.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / "figure.svg").read_text()


@pytest.mark.parametrize("study", ALL)
def test_differences_are_not_drawn(study: str, draw: Callable[..., Drawn]) -> None:
    difference = {"kind": "difference", "site": "mlp_out.0", "arm": "gated", "baseline": "relu", "difference": 0.1}
    assert set(draw(study, [*ALL[study], difference])) == set(draw(study, ALL[study]))


def test_no_records_have_no_figure(tmp_path: Path) -> None:
    assert write_study_figure(tmp_path, STUDIES["cost"], []) is None
    assert not list(tmp_path.iterdir())


def test_rows_of_a_study_that_draws_nothing_have_no_figure(tmp_path: Path) -> None:
    assert write_study_figure(tmp_path, replace(STUDIES["cost"], figure=None), COST) is None
    assert not list(tmp_path.iterdir())
