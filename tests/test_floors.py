"""The import rule of the library: a module imports only from floors below its own."""

import ast
import subprocess
import sys
from pathlib import Path

import penstock

PACKAGE = Path(penstock.__file__).parent

FLOORS = [
    {"shapes", "files", "strict"},
    {"sparse"},
    {"kernels", "metrics"},
    {"saes", "language_models"},
    {"activations", "formats"},
    {"training", "evaluation"},
    {"studies", "inspection"},
    {"reports"},
    {"cli"},
    {"__main__"},
]

EXCEPTIONS = {
    # The package's face re-exports from every floor; nothing inside imports it.
    "__init__"
}


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """The top-level rooms of penstock that a module's source imports, wherever the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            modules = [node.module or ""]
            if node.module == "penstock":
                modules = [f"penstock.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {module.split(".")[1] for module in modules if module.startswith("penstock.")}
    return rooms


def wrong_arrows(room: str, source: str) -> set[str]:
    """Imports from the same floor's other rooms, or from above."""
    return {other for other in imported_rooms(source) if other != room and floor_of(other) >= floor_of(room)}


def test_every_import_points_down() -> None:
    found = {
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.glob("**/*.py")
        if room_of(path) not in EXCEPTIONS
        for other in wrong_arrows(room_of(path), path.read_text())
    }
    assert not found, "imports that do not point down: " + "; ".join(sorted(found))


def test_an_arrow_that_points_up_or_sideways_is_seen() -> None:
    assert wrong_arrows("saes", "from penstock.training.run import TrainingRun") == {"training"}
    assert wrong_arrows("saes", "def f():\n    import penstock.language_models.sites") == {"language_models"}
    assert wrong_arrows("saes", "from penstock import cli") == {"cli"}
    assert not wrong_arrows("training", "from penstock.saes import SAE\nimport torch")


def test_importing_penstock_imports_nothing_heavy_beyond_torch() -> None:
    heavy = {"transformers", "numba", "triton", "scipy", "matplotlib", "jinja2"}
    code = (
        f"import sys, torch; before = set(sys.modules); import penstock; print({heavy} & (set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
