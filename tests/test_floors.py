"""The shape of the library: a module imports only from floors below its own, and no room grows too full."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import penstock
from penstock.studies import STUDIES

PACKAGE = Path(penstock.__file__).parent

FLOORS = [
    {"shapes", "files", "json_files", "devices", "settings", "shell", "version"},
    {"sparse", "strict"},
    {"kernels", "metrics"},
    {"saes", "language_models"},
    {"activations", "formats"},
    {"evaluation"},
    {"training"},
    {"inspection", "posthoc"},
    {"runs", "charts"},
    {"studies"},
    {"paper"},
    {"reports"},
    {"cli"},
    {"__main__"},
]
"""The rooms of the package, from the lowest floor up; those on one floor do not import each other."""

SUB_FLOORS = {
    "saes": [{"shared"}, {"jumprelu"}, {"gated"}, {"relu", "gated_ablations"}, {"__init__"}],
    "training": [
        {"settings"},
        {"schedules", "steering", "resampling", "convergence", "optimisers", "checkpoint", "interrupts", "trackers"},
        {"batches", "metrics_log", "outcome", "trainer"},
        {"run"},
    ],
    "reports": [{"data"}, {"wording"}, {"figures"}, {"pages"}, {"__init__"}],
    "studies": [{"shared"}, {*STUDIES}, {"__init__"}, {"study_run"}],
}
"""The same for rooms inside a room."""

MOST_MODULES = 15
MOST_INNER_FLOORS = 5
"""Modules in the longest chain of imports inside one room."""

EXCEPTIONS = {
    # The package's face re-exports from every floor; nothing inside imports it.
    "__init__"
}


def name_of(path: Path) -> str:
    """A module's name without the package's, such as `runs.sweep` or, for a room's own file, `runs.__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def modules() -> dict[str, set[str]]:
    """Every module with the modules that it imports."""
    return {name_of(path): set(imports(path.read_text())) for path in PACKAGE.rglob("*.py")}


def imports(source: str) -> Iterator[str]:
    """The modules of penstock that a source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        yield from (module_of(target.split(".")[1:]) for target in targets if target.startswith("penstock."))


def module_of(parts: list[str]) -> str:
    """The module that an imported name lies in: the longest beginning that is a file or a folder."""
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return ".".join(parts[:length])
        if (path / "__init__.py").is_file():
            return ".".join([*parts[:length], "__init__"])
    return parts[0]


def rooms() -> list[str]:
    """Every folder with modules, as a dotted name."""
    return sorted({name.rpartition(".")[0] for name in modules()} - {""})


def inside(room: str) -> dict[str, set[str]]:
    """What lies directly in a room, modules and rooms, each with what it imports of the others there."""
    depth = len(room.split("."))
    found: dict[str, set[str]] = {}
    for name, imported in modules().items():
        if name.startswith(f"{room}."):
            part = name.split(".")[depth]
            others = {other.split(".")[depth] for other in imported if other.startswith(f"{room}.")}
            found.setdefault(part, set()).update(others - {part})
    return found


def chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest chain of imports, the importing one last; raises CycleError where there is a ring."""
    longest: dict[str, list[str]] = {}
    for part in TopologicalSorter(graph).static_order():
        below = max((longest[other] for other in graph.get(part, ())), key=len, default=[])
        longest[part] = [*below, part]
    return max(longest.values(), key=len)


def floor_of(room: str, floors: list[set[str]]) -> int:
    return next(floor for floor, rooms in enumerate(floors) if room in rooms)


def wrong_arrows(room: str, imported: set[str], floors: list[set[str]]) -> set[str]:
    """Imports from the same floor's other rooms, or from above."""
    return {other for other in imported - {room} if floor_of(other, floors) >= floor_of(room, floors)}


def test_every_import_points_down() -> None:
    found = {
        f"{name} imports {other}"
        for name, imported in modules().items()
        if name not in EXCEPTIONS
        for other in wrong_arrows(name.split(".")[0], {other.split(".")[0] for other in imported}, FLOORS)
    }
    assert not found, "imports that do not point down: " + "; ".join(sorted(found))


@pytest.mark.parametrize("room", SUB_FLOORS)
def test_every_import_between_the_rooms_of_a_room_points_down(room: str) -> None:
    graph = inside(room)
    found = {part: wrong for part in graph if (wrong := wrong_arrows(part, graph[part], SUB_FLOORS[room]))}
    assert not found, f"imports inside {room} that do not point down: {found}"


def test_rooms_inside_a_room_have_their_floors() -> None:
    assert set(SUB_FLOORS) == {room.split(".")[0] for room in rooms() if "." in room}


@pytest.mark.parametrize("room", rooms())
def test_a_room_is_small_and_shallow(room: str) -> None:
    graph = inside(room)
    if not any("__init__" in imported for imported in graph.values()):
        # It is the room's face, or its list of entries, for those outside.
        graph.pop("__init__", None)
    assert len(graph) <= MOST_MODULES, f"{room} holds {len(graph)} modules: give it rooms of its own"
    try:
        longest = chain(graph)
    except CycleError as error:
        pytest.fail(f"a ring of imports in {room}: {' -> '.join(error.args[1])}")
    assert len(longest) <= MOST_INNER_FLOORS, f"{room} has {len(longest)} inner floors: {' <- '.join(longest)}"


def test_an_arrow_that_points_up_or_sideways_is_seen() -> None:
    def wrong(room: str, source: str) -> set[str]:
        return wrong_arrows(room, {other.split(".")[0] for other in imports(source)}, FLOORS)

    assert wrong("saes", "from penstock.training.run import TrainingRun") == {"training"}
    assert wrong("saes", "def f():\n    import penstock.language_models.sites") == {"language_models"}
    assert wrong("saes", "from penstock import cli") == {"cli"}
    assert not wrong("training", "from penstock.saes import SAE\nimport torch")


def test_a_ring_and_a_long_chain_are_seen() -> None:
    with pytest.raises(CycleError):
        chain({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert chain({"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": set()}) == ["c", "b", "a"]


def test_an_imported_name_is_traced_to_its_module() -> None:
    found = set(
        imports("from penstock.runs import sweep\nfrom penstock.studies import STUDIES\nimport penstock.sparse")
    )
    assert found == {"runs.sweep", "studies.__init__", "sparse"}


def test_importing_penstock_imports_nothing_heavy_beyond_torch() -> None:
    heavy = {"transformers", "numba", "triton", "scipy", "matplotlib", "jinja2"}
    code = (
        f"import sys, torch; before = set(sys.modules); import penstock; print({heavy} & (set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
