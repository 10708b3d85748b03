"""Every tensor that the library makes names its device, so that `torch.set_default_device` cannot move a part of it."""

import ast
from pathlib import Path

import pytest

import penstock

PACKAGE = Path(penstock.__file__).parent

FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand"),
    *("randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "zeros"),
}
"""What a default device applies to; the others take the device of a tensor that they are given."""


def makes_a_tensor_anywhere(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
        and not any(keyword.arg == "device" for keyword in node.keywords)
    )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_new_tensor_names_its_device(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if makes_a_tensor_anywhere(node)] == []
