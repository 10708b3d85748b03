"""Options that follow from the architectures: which there are, and the settings that they have of their own."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from penstock.saes import ARCHITECTURES, Settings, offered, training_of
from penstock.training.settings.recipes import RECIPES


def own_names() -> tuple[str, ...]:
    """Names of the settings that architectures have of their own, each once."""
    return tuple(dict.fromkeys(name for arch in offered() for name in ARCHITECTURES[arch].settings.names()))


def of_one_sae(options: type) -> type:
    """The options with a choice of architecture and recipe, and each own setting as an option with one value."""
    choices = {"arch": Literal[offered()], "recipe": Literal[tuple(RECIPES)] | None}  # pyright: ignore
    return _extended(options, choices, lambda kind: (kind | None, None))


def of_many_saes(options: type) -> type:
    """The options with choices of architectures and recipes, and each own setting as an option with several values."""
    choices = {
        "arch": tuple[Literal[offered()], ...],  # pyright: ignore
        "recipe": tuple[Literal[tuple(RECIPES)], ...],  # pyright: ignore
    }
    return _extended(options, choices, lambda kind: (tuple[kind, ...], ()))


def aims_of(
    arch: str, given: dict[str, tuple[float, ...]], default: dict[str, tuple[float, ...]]
) -> list[dict[str, Any]]:
    """How sparse the SAEs of an architecture are to be: those of the given aims that it takes.

    Args:
        arch: The architecture.
        given: Values by name of the aim; empty where none was given.
        default: What is aimed at if nothing is given.
    """
    allowed = training_of(arch).aims
    if not allowed:
        return [{}]
    asked = {name: values for name, values in given.items() if values} or default
    # If it takes none of them, SAEConfig says so.
    fitting = {name: values for name, values in asked.items() if name in allowed} or asked
    return [{name: value} for name, values in fitting.items() for value in values]


def _extended(options: type, choices: dict[str, Any], form: Callable[[Any], tuple[Any, Any]]) -> type:
    old = {one.name: one for one in fields(options)}
    added: list[tuple[str, Any, Any]] = [
        (name, kind, field(default=old[name].default)) for name, kind in choices.items()
    ]
    for name in own_names():
        takers = [arch for arch in offered() if name in ARCHITECTURES[arch].settings.names()]
        own = ARCHITECTURES[takers[0]].settings
        kind, default = form(get_type_hints(own)[name])
        labels = ", ".join(ARCHITECTURES[arch].label for arch in takers)
        text = f"{labels}: {_docstrings(own).get(name, name)}{_default_of(own, name)}"
        added.append((name, Annotated[kind, tyro.conf.arg(help=text)], field(default=default)))
    # Under the name and module of the original, where tyro finds the help of all other options.
    made = make_dataclass(options.__name__, added, bases=(options,), frozen=True, kw_only=True)
    made.__module__, made.__doc__, made.__qualname__ = options.__module__, options.__doc__, options.__qualname__
    return made


def _default_of(settings: type[Settings], name: str) -> str:
    default = next(one for one in fields(settings) if one.name == name).default
    return "" if default is MISSING else f" {default} if left out."


def _docstrings(settings: type[Settings]) -> dict[str, str]:
    """The docstring below each setting, by name; none for a class that was typed into a session."""
    try:
        source = inspect.getsource(settings)
    except (OSError, TypeError):
        return {}
    (node,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(node, ast.ClassDef)
    return {
        before.target.id: " ".join(str(after.value.value).split())
        for before, after in zip(node.body, node.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
