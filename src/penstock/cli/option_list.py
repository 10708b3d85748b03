"""The options of a command as data, for `--help` and docs/options.md; read from the dataclasses that tyro parses."""

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
    """The flag, e.g. `--d-sae`, or the name of a positional argument in capitals."""
    value: str
    """The placeholder for its value, e.g. `N` or `{gated,relu}`; empty for a switch."""
    explanation: str
    default: str
    """The default; empty if there is none, or if the explanation states it."""
    section: str
    """The name of the settings class that declares it."""
    is_positional: bool
    is_required: bool


def options_of(command: type) -> list[Option]:
    """The options of a command's dataclass and of its nested dataclasses, positional ones first."""
    return sorted(_options(command, ""), key=lambda option: not option.is_positional)


def summary_of(command: type) -> str:
    """The description of a command: its docstring on one line."""
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
            # The argument's name tells users more than PATH would.
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
    """The name of the class that declares a field: the settings class or one of its bases."""
    return next(one.__name__ for one in reversed(settings.__mro__) if name in vars(one).get("__annotations__", {}))


def _explanations(settings: type) -> Mapping[str, str]:
    """The docstrings of the fields of a class and its bases, by field."""
    found: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        if dataclasses.is_dataclass(owner):
            parsed = docstring_parser.parse_from_object(owner)
            found |= {one.arg_name: one.description or "" for one in parsed.params}
    return found


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type without its annotations, and the annotations."""
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
