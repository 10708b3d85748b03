"""A study is one file and one line: one that is added from outside goes all the way; the others are what they say."""

import importlib
import importlib.util
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.paper.presets import PRESETS
from penstock.reports import write_pareto_figure
from penstock.reports.pages.reproduction_page import write_reproduction_page
from penstock.runs.finished_run import FinishedRun
from penstock.studies import STUDIES
from penstock.studies.shared.declaration import Study

NORMS = '''"""How long the decoder rows of a run\'s SAEs are."""

from dataclasses import dataclass

from penstock.studies.shared.declaration import Study, columns


@dataclass(frozen=True, kw_only=True)
class NormsConfig:
    power: float = 1.0
    """Power of the norms whose mean is taken."""


def norms(run, config):
    """The mean norm of each SAE\'s decoder rows."""
    return [{"name": n, "mean": sae.W_dec.norm(dim=1).pow(config.power).mean().item()} for n, sae in run.saes.items()]


def draw(records):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().bar([r["name"] for r in records], [r["mean"] for r in records])
    return figure


STUDY = Study(
    name="norms",
    title="Norms of the decoder",
    question="How long are the decoder rows?",
    source="",
    reading="All of them are 1.",
    settings=NormsConfig,
    records=norms,
    table=columns("name", "mean"),
    figure=draw,
)
'''


@pytest.fixture
def norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study in a file of its own, outside the package."""
    (tmp_path / "norms.py").write_text(NORMS)
    spec = importlib.util.spec_from_file_location("norms", tmp_path / "norms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Help texts are read from the source of a module that is imported.
    monkeypatch.setitem(sys.modules, "norms", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(STUDIES, "norms", module.STUDY)
    return module.STUDY


def test_a_study_from_outside_has_command_records_table_figure_and_section(
    norms: Study, finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, run_dir, ignore=shutil.ignore_patterns("studies", "checkpoints"))
    assert main(["study", "norms", str(run_dir), "--power", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^name +mean", out) and re.search(r"^gated0 +1\.000", out, flags=re.MULTILINE)
    folder = run_dir / "studies" / "norms"
    assert json.loads((folder / "settings.json").read_text())["settings"] == {"power": 2.0}
    assert (folder / "table.csv").read_text().startswith("name,mean\ngated0,")
    assert (folder / "figure.svg").is_file() and (folder / "figure.png").is_file()
    write_pareto_figure(run_dir)
    site = replace(PRESETS["embedded"].sites[0], name="run")
    text = write_reproduction_page(tmp_path, {"run": ("norms",)}, "One", {"run": site}).read_text()
    assert "<h2>Norms of the decoder</h2>" in text and "All of them are 1." in text
    assert re.search(r"<td>gated0</td>\s*<td>1\.000</td>", text)


def test_a_study_from_outside_explains_itself(norms: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "norms", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert norms.question in out and "Power of the norms whose mean is taken." in out
    assert main(["study", "--help"]) == 0
    assert norms.question in capsys.readouterr().out


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_ends_in_its_declaration_and_gives_its_own_name(name: str) -> None:
    module = importlib.import_module(f"penstock.studies.{name}")
    assert module.STUDY is STUDIES[name] and module.STUDY.name == name
    source = Path(str(module.__file__)).read_text()
    assert source.rstrip().endswith(")") and "\nSTUDY = Study(" in source[source.rindex("\n\n\n") :]
    assert STUDIES[name].settings() == STUDIES[name].settings()


def test_the_guide_lists_every_study_as_it_says_of_itself() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    listed = [line for line in guide.splitlines() if line.startswith("| `penstock study ")]
    assert listed == [
        f"| `penstock study {study.name} RUN` | {study.question} | {study.source} |" for study in STUDIES.values()
    ]
