"""Command-line options of the architectures: their names as choices, and their own settings."""

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
    """Names of all architectures' own settings, without repetition."""
    return tuple(dict.fromkeys(name for arch in offered() for name in ARCHITECTURES[arch].settings.names()))


def of_one_sae(options: type) -> type:
    """The options class with choices for --arch and --recipe, and each own setting as an option with one value."""
    choices = {"arch": Literal[offered()], "recipe": Literal[tuple(RECIPES)] | None}  # pyright: ignore
    return _extended(options, choices, lambda kind: (kind | None, None))


def of_many_saes(options: type) -> type:
    """The options class with choices for --arch and --recipe, and each own setting as an option with several values."""
    choices = {
        "arch": tuple[Literal[offered()], ...],  # pyright: ignore
        "recipe": tuple[Literal[tuple(RECIPES)], ...],  # pyright: ignore
    }
    return _extended(options, choices, lambda kind: (tuple[kind, ...], ()))


def aims_of(
    arch: str, given: dict[str, tuple[float, ...]], default: dict[str, tuple[float, ...]]
) -> list[dict[str, Any]]:
    """The sparsity settings of an architecture's SAEs, one dict per SAE: the given aims that the architecture takes.

    Args:
        arch: The architecture.
        given: Values by name of the aim; empty if none were given.
        default: The aims if none are given.
    """
    allowed = training_of(arch).aims
    if not allowed:
        return [{}]
    asked = {name: values for name, values in given.items() if values} or default
    # If the architecture takes none of them, SAEConfig raises.
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
    # tyro finds the help of the other options by the name and module of the original class.
    made = make_dataclass(options.__name__, added, bases=(options,), frozen=True, kw_only=True)
    made.__module__, made.__doc__, made.__qualname__ = options.__module__, options.__doc__, options.__qualname__
    return made


def _default_of(settings: type[Settings], name: str) -> str:
    default = next(one for one in fields(settings) if one.name == name).default
    return "" if default is MISSING else f" Default: {default}."


def _docstrings(settings: type[Settings]) -> dict[str, str]:
    """The docstring below each setting by name; empty for a class without source code, as in an interactive session."""
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
