"""The command line, the only part of the package that parses arguments or prints."""

import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from penstock.cli.architecture_options import of_many_saes, of_one_sae
from penstock.cli.conversion import ConvertGelu1L, convert
from penstock.cli.eval_report_info import Eval, Info, Report, evaluate_again, info, report
from penstock.cli.help import help_of, help_of_commands
from penstock.cli.numbers import NUMBERS
from penstock.cli.option_list import options_of, summary_of
from penstock.cli.output import Usage
from penstock.cli.reproduction import Reproduce, run_preset
from penstock.cli.runs import Sweep, Train, train_and_evaluate
from penstock.cli.studies import StudyCommand, make_study, study_commands
from penstock.runs.run_lock import RunInUseError
from penstock.shell import resume_command
from penstock.studies import STUDIES
from penstock.training.checkpoint import CheckpointError
from penstock.training.trainer import DivergenceError
from penstock.version import __version__

_PROGRAM = "Train, evaluate and compare sparse autoencoders on the activations of language models."

Commands = Mapping[str, tuple[type, Callable[[Any], None]]]

_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "sweep": (Sweep, train_and_evaluate),
    "train": (Train, train_and_evaluate),
    "eval": (Eval, evaluate_again),
    "report": (Report, report),
    "info": (Info, info),
    "study": (StudyCommand, make_study),
    "reproduce": (Reproduce, run_preset),
    "convert-gelu-1l": (ConvertGelu1L, convert),
}


def option_classes() -> dict[str, type]:
    """The dataclass of each command's options by command, e.g. `train` or `study refit`."""
    studies = {f"study {name}": options for name, (options, _) in study_commands().items()}
    commands = {name: options for name, (options, _) in _commands().items() if name != "study"}
    return {**commands, **studies}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed on the way, 2 settings that cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in STUDIES:
        # Studies were once called without `study`; this form still works.
        arguments = ["study", *arguments]
    program, about, commands = "penstock", _PROGRAM, _commands()
    if arguments[:1] == ["study"]:
        program, about, commands = "penstock study", summary_of(StudyCommand), study_commands()
        arguments = arguments[1:]
    text = _help(arguments, program, about, commands)
    if text is not None:
        print(text, end="")
        return 0
    if arguments == ["--version"]:
        print(f"penstock {__version__}")
        return 0
    try:
        parsed: Any = tyro.extras.subcommand_cli_from_dict(
            {name: options for name, (options, _) in commands.items()},
            prog=program,
            description=about,
            args=_spelled(arguments, commands),
            config=(tyro.conf.OmitSubcommandPrefixes,),
            registry=NUMBERS,
        )
    except ValueError as error:
        # The dataclasses check themselves for settings that are out of range or exclude each other.
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        actions = dict(commands.values())
        actions[type(parsed)](parsed)
        sys.stdout.flush()
    except Usage as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return _reader_gone()
    except (ValueError, OSError, ImportError, CheckpointError, DivergenceError, RunInUseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # The training loop handles Ctrl-C itself and saves. Elsewhere there is nothing to save.
        print("error: stopped by Ctrl-C. Saved work is kept. Continue with:", _again(parsed), file=sys.stderr)
        return 1
    return 0


def _help(arguments: Sequence[str], program: str, about: str, commands: Commands) -> str | None:
    """The help text that the arguments ask for; None if they do not ask for help, or the command is unknown."""
    wanted = {"-h", "--help", "--help-all"}.intersection(arguments)
    if not wanted:
        return None
    if arguments[0].startswith("-"):
        more = "penstock --version prints the version." if program == "penstock" else ""
        return help_of_commands(program, {name: summary_of(one) for name, (one, _) in commands.items()}, about, more)
    if arguments[0] not in commands:
        return None
    name = f"{program} {arguments[0]}".removeprefix("penstock ")
    return help_of(name, commands[arguments[0]][0], everything="--help-all" in wanted)


def _spelled(arguments: Sequence[str], commands: Commands) -> list[str]:
    """The arguments with every flag in the spelling of its command; users may write singular or plural."""
    known: set[str] = set()
    if arguments and arguments[0] in commands:
        known = {option.flag for option in options_of(commands[arguments[0]][0])}
    return [_one_spelled(argument, known) for argument in arguments]


def _one_spelled(argument: str, known: set[str]) -> str:
    flag, equals, value = argument.partition("=")
    name = flag.replace("_", "-")
    if not flag.startswith("--") or name in known:
        return argument
    other = name.removesuffix("s") if name.endswith("s") else f"{name}s"
    return f"{other}{equals}{value}" if other in known else argument


def _commands() -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The commands with the options of all architectures, computed at each call because users can add architectures."""
    extended = {"sweep": of_many_saes, "train": of_one_sae}
    return {name: (extended.get(name, _unchanged)(options), act) for name, (options, act) in _COMMANDS.items()}


def _unchanged(options: type) -> type:
    return options


def _again(parsed: Any) -> str:
    """The command that continues one that was stopped."""
    out = getattr(parsed, "resume", None) or getattr(parsed, "out", None)
    if isinstance(parsed, (Train, Sweep)) and out is not None and (out / "config.json").is_file():
        return resume_command(out)
    return "the same command."


def _reader_gone() -> int:
    """Exit code after the reader of a pipe has closed it, as `head` does. Also discards what is left to print."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def run() -> None:
    """Entry point of the `penstock` command."""
    for stream in (sys.stdout, sys.stderr):
        # The encoding of a terminal or pipe may lack characters of a text, path or message.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(main())
