"""Tables and warnings that the command line prints."""

from typing import Any

import pytest

from penstock.cli.output import print_records


def record(name: str, warnings: list[str]) -> dict[str, Any]:
    numbers = ("l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias", "frac_alive")
    return {"name": name, "warnings": warnings, "intervals": {}, **dict.fromkeys(numbers, 1.0)}


def test_warnings_of_one_kind_are_grouped_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    few = "few sequences: the intervals rest on 8 sequences."
    records = [record(f"sae{index}", [few, f"dead latents: {index}0% never fire."]) for index in range(6)]
    print_records([*records, record("other", ["a warning without a kind"])])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 8
    assert err.splitlines() == [
        "warning: Few sequences",
        "  the intervals rest on 8 sequences. (sae0, sae1, sae2, and 3 more)",
        "warning: Dead latents",
        *(f"  {index}0% never fire. (sae{index})" for index in range(3)),
        "  and 3 more: see `warnings` in the records, or the report",
        "warning: Other",
        "  a warning without a kind (other)",
    ]


def test_no_warning_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([record("a", [])])
    assert capsys.readouterr().err == ""
