"""Whole numbers as people write them on a command line."""

import pytest
import tyro

from penstock.activations.settings import DataConfig
from penstock.cli import main
from penstock.cli.numbers import NUMBERS, whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4096", 4096),
        ("4_096", 4096),
        ("-3", -3),
        ("1e6", 10**6),
        ("1E6", 10**6),
        ("2.5e3", 2500),
        ("1.5M", 1_500_000),
        ("100M", 10**8),
        ("8k", 8000),
        ("2B", 2 * 10**9),
        ("2g", 2 * 10**9),
    ],
)
def test_a_whole_number_is_read(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["1e6.5", "1.5", "1e-3", "", "M", "1MM", "1 000", "nan", "inf", "0x10", "1e999"])
def test_what_is_not_a_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number. Give one such as 4096, 1e6 or 1.5M"):
        whole_number(text)


def test_every_count_of_the_command_line_is_read_so() -> None:
    options = ["--tokens", "1.5M", "--cache-tokens", "1e6", "--context", "1k"]
    found = tyro.cli(DataConfig, args=options, registry=NUMBERS)
    assert found == DataConfig(tokens=1_500_000, cache_tokens=10**6, context=1000)


def test_the_command_says_what_it_did_not_understand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--tokens", "1e6.5"])
    # The frame of the message, and where its lines end, differ between versions of tyro.
    assert "is not a whole number" in " ".join(capsys.readouterr().err.replace("│", " ").split())
