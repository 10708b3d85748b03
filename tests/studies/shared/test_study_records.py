"""No study is made twice for the same settings, and none is believed that was cut short."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.evaluation.sae_record import Records
from penstock.studies.shared import study_records as module
from penstock.studies.shared.study_records import read_or_make, study_folder


@dataclass(frozen=True)
class Settings:
    strength: float = 1.0
    places: tuple[int, ...] = (1, 2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "saes" / "one").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "saes" / "one" / "sae.safetensors").write_bytes(b"weights")
    return tmp_path


class Study:
    """Counts how often it is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Records:
        self.made += 1
        return [{"name": "a", "made": self.made}, {"name": "b", "made": self.made}]


def test_the_same_settings_on_the_same_run_are_read_from_disk(run: Path) -> None:
    study = Study()
    first = read_or_make(run, "study", Settings(), study)
    assert read_or_make(run, "study", Settings(), study) == first == Study()()
    assert study.made == 1


def test_other_settings_another_run_or_another_study_are_made_anew(run: Path) -> None:
    study = Study()
    read_or_make(run, "study", Settings(), study)
    assert read_or_make(run, "study", Settings(strength=2.0), study)[0]["made"] == 2
    (run / "saes" / "one" / "sae.safetensors").write_bytes(b"other weights")
    assert read_or_make(run, "study", Settings(strength=2.0), study)[0]["made"] == 3
    (run / "config.json").write_text('{"seed": 1}')
    assert read_or_make(run, "study", Settings(strength=2.0), study)[0]["made"] == 4
    assert read_or_make(run, "other", Settings(strength=2.0), study)[0]["made"] == 5


def test_a_study_of_another_version_is_made_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study()
    read_or_make(run, "study", Settings(), study)
    monkeypatch.setattr(module, "__version__", "99.0")
    read_or_make(run, "study", Settings(), study)
    assert study.made == 2


def test_a_study_that_was_cut_short_is_made_again(run: Path) -> None:
    study = Study()

    def killed() -> Records:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_or_make(run, "study", Settings(), killed)
    read_or_make(run, "study", Settings(), study)
    (study_folder(run, "study") / "settings.json").unlink()
    assert read_or_make(run, "study", Settings(), study)[0]["made"] == 2


def test_what_was_drawn_of_an_earlier_study_goes_with_it(run: Path) -> None:
    read_or_make(run, "study", Settings(), Study())
    drawn = [study_folder(run, "study") / name for name in ("table.csv", "figure.png", "figure.svg")]
    for path in drawn:
        path.write_text("of the first")
    read_or_make(run, "study", Settings(), Study())
    assert all(path.exists() for path in drawn)
    read_or_make(run, "study", Settings(strength=2.0), Study())
    assert not any(path.exists() for path in drawn)


def test_new_records_are_those_that_will_be_read(run: Path) -> None:
    """A tuple becomes a list on disk, and a table of the one would not be that of the other."""
    (record,) = read_or_make(run, "study", Settings(), lambda: [{"interval": (0.25, 0.5), 3: "three"}])
    assert record == {"interval": [0.25, 0.5], "3": "three"}
    assert read_or_make(run, "study", Settings(), list) == [record]
