"""Benchmarks run by hand, so nothing else notices when a name that they import has moved."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("**/*.py"))


def missing_names(source: str) -> list[str]:
    """The names that a script imports from penstock and that are not there."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "penstock":
            if importlib.util.find_spec(str(node.module)) is None:
                missing.append(str(node.module))
                continue
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                is_room = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}") is not None
                if not hasattr(module, name) and not is_room:
                    missing.append(f"{node.module}.{name}")
    return missing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "benchmarks")))
def test_what_a_benchmark_imports_from_penstock_is_there(script: Path) -> None:
    assert not missing_names(script.read_text())


def test_a_name_that_has_moved_is_seen() -> None:
    assert missing_names("from penstock.saes import GatedSAE, NoSuchSAE") == ["penstock.saes.NoSuchSAE"]
    assert missing_names("from penstock.metrics import no_such") == ["penstock.metrics.no_such"]
    assert missing_names("def f():\n    from penstock.nowhere import x") == ["penstock.nowhere"]
    assert not missing_names("from penstock.kernels import cuda_programs, cpu")
