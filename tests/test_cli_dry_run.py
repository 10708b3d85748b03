"""What `reproduce --dry-run` prints, against counts and sizes worked out by hand."""

import re

import pytest

from penstock.cli import main
from penstock.cli.reproduction import _time

GIB = 2**30


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """What is printed of training, each line by its first word."""
    assert main(["reproduce", *arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out.split("deviations from the paper")[0]
    return {line.split()[0]: line for line in text.splitlines()}


def number(pattern: str, line: str) -> float:
    found = re.search(pattern.replace("N", r"([\d.e+]+)"), line)
    assert found is not None, line
    return float(found[1])


@pytest.mark.parametrize(
    ("preset", "ablations", "sensitivity"),
    [
        # 7 ablations of 4 targets; four settings off by 4 factors for both arms.
        ("gelu-1l", "28 SAEs of 131,072 latents", "32 SAEs of 32,768, 49,152, 65,536, 98,304, 131,072, 196,608, "),
        # 7 ablations of 2 targets and 2 seeds; factors of the preset: 4 + 4 + 2 + 2 for both arms.
        ("embedded", "28 SAEs of 1,024 latents", "24 SAEs of 512, 768, 1,024, 1,536, 2,048 and 3,072 latents"),
    ],
)
def test_what_studies_train_is_said(
    capsys: pytest.CaptureFixture[str], preset: str, ablations: str, sensitivity: str
) -> None:
    said = lines_of(capsys, preset)
    assert f"trains {ablations}" in said["ablations"]
    assert f"trains {sensitivity}" in said["sensitivity"]
    assert not said.keys() & {"refit", "pursuit", "pruning", "shrinkage"}
    assert "parts" not in "".join(said.values())
    assert "evaluation" in said["not"] and "refits" in said["not"]


def test_a_preset_without_studies_that_train_has_no_lines_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys, "pythia-2.8b").keys() & {"ablations", "sensitivity"} == set()


def test_memory_and_time_hold_what_studies_train(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines_of(capsys, "gelu-1l")
    # Bytes of one Gated SAE of the run: two matrices, biases beside them are nothing.
    matrices = 4 * 2 * 2048 * 2**17
    # An SAE and its second moments are twice that; untied has half as much more, and three recipes first moments.
    trained = 4 * (2 + 2 + 3 + 2 + 3 * 3) * matrices
    buffers = 3 * 4 * 1_000_000 * 2048
    # The rest is a step: gradients, the pairs of a random dictionary.
    assert trained + buffers < number("at most N GiB", said["ablations"]) * GIB < 1.1 * (trained + buffers)

    # The encoder's product, of each batch and once a step for b_dec; untied has a second one with both its gradients.
    widths = 8 * 2**17 + 4 * 196_608 + 28 * 2**17 + (12 + 0.25 + 0.5 + 2 + 4) * (2**17 + 196_608)
    products = 300_000 * 2048 * (2 * 4097 * widths + 3 * 2 * 4096 * 4 * 2**17)
    expected = products / 9.9e14 / 3600
    assert expected < number(r"at least N hours at 9.9e\+14", said["training:"]) < 1.1 * expected


@pytest.mark.parametrize(
    ("hours", "said"),
    [(0.5, "30 minutes"), (1.5, "1.5 hours"), (48.0, "2 days"), (8760.0, "365 days"), (87600.0, "10 years")],
)
def test_times_are_said_in_the_unit_that_suits(hours: float, said: str) -> None:
    assert _time(hours) == said


def test_with_a_limit_of_memory_it_is_said_how_each_run_is_divided(capsys: pytest.CaptureFixture[str]) -> None:
    whole = lines_of(capsys, "gelu-1l", "--device", "cuda")
    said = lines_of(capsys, "gelu-1l", "--memory", "70", "--device", "cuda")
    for name in ("mlp_act.0", "ablations", "sensitivity"):
        parts, largest = number("in N parts", said[name]), number("parts of at most N GiB", said[name])
        assert said[name].startswith(whole[name])
        assert largest <= 70 and parts > 1 and parts * largest > number("at most N GiB of memory", whole[name])
    roomy = lines_of(capsys, "embedded", "--memory", "60")
    assert all(roomy[name].endswith("in one piece") for name in ("resid_post.2", "mlp_out.1", "ablations"))


def test_an_sae_that_no_part_can_hold_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The widest of sensitivity: 4 times 196,608 latents, their matrices, second moments and gradients."""
    said = lines_of(capsys, "gelu-1l", "--memory", "40")
    assert number("d_sae_x4 alone needs up to N GiB", said["sensitivity"]) * GIB > 3 * 4 * 2 * 2048 * 4 * 196_608
    assert "parts of at most" in said["ablations"]
