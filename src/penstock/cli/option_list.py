"""The options of a command as data, read from the dataclasses that tyro parses: for `--help` and docs/options.md."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

_ARG = type(tyro.conf.arg())
_PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Option(NamedTuple):
    """One option of a command."""

    flag: str
    """As typed, e.g. `--d-sae`; for a positional argument its name in capitals."""
    value: str
    """What stands for its value, e.g. `N` or `{gated,relu}`; empty for a switch."""
    explanation: str
    default: str
    """Empty where there is none, or where the explanation says what happens without the option."""
    section: str
    """Name of the settings class that states it."""
    is_positional: bool
    is_required: bool


def options_of(command: type) -> list[Option]:
    """The options of a command's dataclass and of the sections in it, positional ones first."""
    return sorted(_options(command, ""), key=lambda option: not option.is_positional)


def summary_of(command: type) -> str:
    """What a command does, in the words of its docstring."""
    return " ".join((command.__doc__ or "").split())


def _options(settings: type, prefix: str) -> Iterator[Option]:
    hints = get_type_hints(settings, include_extras=True)
    explanations = _explanations(settings)
    for field in dataclasses.fields(settings):
        kind, notes = _parts(hints[field.name])
        about: Any = next((note for note in notes if isinstance(note, _ARG)), tyro.conf.arg())
        name = field.name.rstrip("_").replace("_", "-") if about.name is None else about.name
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _options(kind, f"{prefix}{name}." if name else prefix)
            continue
        is_positional = tyro.conf.Positional in notes
        value = _placeholder(kind)
        if is_positional and not value.startswith("{"):
            # Its own name says more than PATH would.
            value = "..." if value.endswith("...") else ""
        yield Option(
            flag=(about.metavar or name.upper()) if is_positional else f"--{prefix}{name}",
            value=value,
            explanation=" ".join((about.help or explanations.get(field.name, "")).split()),
            default=_default(field),
            section=_owner(settings, field.name),
            is_positional=is_positional,
            is_required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )


def _owner(settings: type, name: str) -> str:
    """The class that states a field: the settings, or one that they inherit from."""
    return next(one.__name__ for one in reversed(settings.__mro__) if name in vars(one).get("__annotations__", {}))


def _explanations(settings: type) -> Mapping[str, str]:
    """The text under each field, in the class or in one that it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        if dataclasses.is_dataclass(owner):
            parsed = docstring_parser.parse_from_object(owner)
            found |= {one.arg_name: one.description or "" for one in parsed.params}
    return found


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type without its notes, and the notes."""
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _placeholder(kind: Any) -> str:
    kind, _ = _parts(kind)
    arguments = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_placeholder, arguments)))
    if get_origin(kind) is tuple:
        return f"{_placeholder(arguments[0])} ..."
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, arguments))}}}"
    return "" if kind is bool else _PLACEHOLDERS.get(kind, "VALUE")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING or value is None or value is False:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
