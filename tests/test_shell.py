"""Commands that are printed can be pasted."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.runs.environment import environment_of
from penstock.shell import quoted, resume_command
from penstock.training.settings import RunConfig


def test_arguments_that_a_shell_would_split_are_quoted() -> None:
    command = ["penstock", "train", "--out", "my runs/it's $HOME", "--text", "a*.txt"]
    assert shlex.split(quoted(command)) == command
    assert resume_command(Path("runs/first")) == "penstock train --resume runs/first"
    assert shlex.split(resume_command(Path("my runs/1")))[-1] == "my runs/1"


def test_on_windows_they_are_quoted_as_its_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "C:/my runs/1"
    monkeypatch.setattr(os, "name", "nt")
    try:
        assert quoted(["penstock", "train", "--resume", path]) == f'penstock train --resume "{path}"'
    finally:
        monkeypatch.undo()


def test_the_command_in_environment_json_can_be_pasted(
    tiny_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/penstock", "train", "--out", "my runs/1"])
    assert environment_of(tiny_run())["command"] == "penstock train --out 'my runs/1'"


@pytest.mark.parametrize(
    ("inside", "code", "told"), [("config.json", 2, "already holds a run. Continue it with"), (None, 2, "is a file")]
)
def test_an_out_that_cannot_be_is_noticed_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str | None, code: int, told: str
) -> None:
    out = tmp_path / "a run"
    if inside is None:
        out.write_text("")
    else:
        out.mkdir()
        (out / inside).write_text("{}")
    assert main(["train", "--out", str(out), "--model", "no/such/model"]) == code
    error = capsys.readouterr().err
    assert told in error
    assert "no/such/model" not in error
