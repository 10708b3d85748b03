"""A study's records on disk, so that no study is made twice with the same settings.

RUN/studies/NAME/settings.json   the settings, a hash of the run, and the version of this library
RUN/studies/NAME/records.jsonl   the records
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.evaluation.sae_record import Records
from penstock.files import write_whole
from penstock.json_files import read_rows
from penstock.runs.run_lock import locked
from penstock.version import __version__

logger = logging.getLogger(__name__)


def study_folder(run_dir: Path, name: str) -> Path:
    """The folder of a study of a run."""
    return run_dir / "studies" / name


def read_lines(path: Path) -> Records:
    """The records in a JSON-lines file.

    Raises:
        FileError: the file is damaged.
        OSError: the file cannot be read.
    """
    found = read_rows(path)
    if found.cut_off:
        logger.warning("The last line of %s is incomplete and is left out.", path)
    return found.rows


def read_or_make(run_dir: Path, name: str, settings: Any, compute: Callable[[], Records]) -> Records:
    """The records of a study, read from disk if they were made with these settings on this run, otherwise computed.

    Computed records are written to the study's folder.

    Args:
        run_dir: The run's directory.
        name: The study's name.
        settings: A dataclass with everything that determines the records, except the run.
        compute: Makes the records.

    Raises:
        OSError: the run's directory cannot be written to.
        RunInUseError: another process makes this study of this run.
    """
    folder = study_folder(run_dir, name)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _read_or_make(folder, settings_json(run_dir, settings), compute)


def _read_or_make(folder: Path, text: str, compute: Callable[[], Records]) -> Records:
    settings_file, records_file = folder / "settings.json", folder / "records.jsonl"
    if settings_file.is_file() and records_file.is_file() and settings_file.read_bytes() == text.encode():
        logger.info("%s holds this study already; delete it to make it again", folder)
        return read_lines(records_file)
    made = "".join(json.dumps(record) + "\n" for record in compute())
    for name_of_file in ("table.csv", "figure.png", "figure.svg"):
        # These files of an earlier study might not be written again.
        (folder / name_of_file).unlink(missing_ok=True)
    # settings.json marks complete records. So the old one is deleted first, and the new one is written last.
    settings_file.unlink(missing_ok=True)
    write_whole(records_file, made)
    write_whole(settings_file, text)
    # Read back, so that they are the same as in later calls: JSON turns tuples into lists.
    return read_lines(records_file)


def settings_json(run_dir: Path, settings: Any) -> str:
    """The text of a study's settings.json: the settings, a hash of the run, and the version of this library."""
    question = {"settings": dataclasses.asdict(settings), "run": _hash_of(run_dir), "penstock": __version__}
    return json.dumps(question, indent=1) + "\n"


def _hash_of(run_dir: Path) -> str:
    """The hash of the run's settings and of its SAEs' weights."""
    found = hashlib.sha256((run_dir / "config.json").read_bytes())
    for weights in sorted(run_dir.glob("saes/*/sae.safetensors")):
        found.update(weights.read_bytes())
    return found.hexdigest()
