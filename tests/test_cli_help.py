"""`--help`: short, complete, in plain text, and true to what tyro parses."""

import re

import pytest
import tyro

from penstock import cli
from penstock.cli import main
from penstock.cli.option_list import options_of


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that ends well."""
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [None, *cli._COMMANDS])
def test_the_daily_help_is_short_plain_and_without_noise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    help_text = told(capsys, *([command] if command else []), "--help")
    assert len(help_text.splitlines()) < 60
    assert help_text.isascii()
    assert max(map(len, help_text.splitlines())) <= 80
    assert not re.search(r"None|MISSING|<class", help_text)


def test_the_daily_help_says_how_to_see_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    daily, everything = (told(capsys, "train", flag) for flag in ("--help", "--help-all"))
    assert "penstock train --help-all" in daily and "--help-all" not in everything
    assert "--beta2" in everything and "--beta2" not in daily
    for group in ("Run", "SAE", "Language model", "Texts and activations", "Optimiser", "Evaluation"):
        assert f"\n{group}:\n" in daily
    assert "\nResampling of dead latents:\n" in everything


@pytest.mark.parametrize("command", ["train", "sweep", "eval", "reproduce"])
def test_the_options_are_those_that_tyro_parses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options_class, _ = cli._COMMANDS[command]
    with pytest.raises(SystemExit):
        tyro.cli(options_class, args=["--help"], config=(tyro.conf.OmitSubcommandPrefixes,))
    parsed = set(re.findall(r"^[│ ] (--[a-z][\w.-]*)", capsys.readouterr().out, flags=re.MULTILINE))
    listed = {option.flag for option in options_of(options_class) if not option.is_positional}
    assert parsed == listed


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_every_option_has_an_explanation(command: str) -> None:
    options = options_of(cli._COMMANDS[command][0])
    assert [option.flag for option in options if not option.explanation] == []


@pytest.mark.parametrize(("command", "flag"), [("train", "--archs"), ("train", "--archs="), ("sweep", "--archs")])
def test_singular_and_plural_are_understood(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, flag: str
) -> None:
    taken = []
    monkeypatch.setitem(cli._COMMANDS, command, (cli._COMMANDS[command][0], taken.append))
    arch = [f"{flag}relu"] if flag.endswith("=") else [flag, "relu"]
    others = ["--sites", "mlp_out.1", "--target-l0s", "4", "--seeds", "3", "--recipes", "paper", "--d-saes", "24"]
    assert main([command, *arch, *others]) == 0, capsys.readouterr().err
    (options,) = taken
    found = (options.arch, options.site, options.target_l0, options.seed, options.recipe, options.d_sae)
    one = ("relu", "mlp_out.1", 4.0, 3, "paper", 24)
    assert found == (one if command == "train" else tuple((value,) for value in one))
