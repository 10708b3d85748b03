"""A study's records on disk, so that none is made twice for the same settings.

RUN/studies/NAME/settings.json   what was asked, and of which run
RUN/studies/NAME/records.jsonl   what was found
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.files import write_whole
from penstock.json_files import read_rows
from penstock.runs.run_lock import locked
from penstock.version import __version__

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""A line of a study's records.jsonl, ready for JSON."""


def study_folder(run: Path, name: str) -> Path:
    """Where a study of a run lies."""
    return run / "studies" / name


def read_lines(path: Path) -> list[Record]:
    """The records in a file of JSON lines.

    Raises:
        FileError: the file is damaged.
        OSError: the file cannot be read.
    """
    found = read_rows(path)
    if found.cut_off:
        logger.warning("The last line of %s was cut off while it was written, and is left out.", path)
    return found.rows


def stored(run: Path, name: str, settings: Any, compute: Callable[[], list[Record]]) -> list[Record]:
    """The records of a study: from disk if they were made with these settings on this run, else computed and written.

    Args:
        run: The run's directory.
        name: Of the study.
        settings: A dataclass with everything that decides the study, except the run.
        compute: Makes the records.

    Raises:
        OSError: the run's directory cannot be written to.
        RunInUseError: another process makes this study of this run.
    """
    folder = study_folder(run, name)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _stored(folder, asked(run, settings), compute)


def _stored(folder: Path, text: str, compute: Callable[[], list[Record]]) -> list[Record]:
    settings_file, records_file = folder / "settings.json", folder / "records.jsonl"
    if settings_file.is_file() and records_file.is_file() and settings_file.read_bytes() == text.encode():
        logger.info("%s holds this study already; delete it to make it again", folder)
        return read_lines(records_file)
    made = "".join(json.dumps(record) + "\n" for record in compute())
    for name_of_file in ("table.csv", "figure.png", "figure.svg"):
        # Files of an earlier study, which are not always written again.
        (folder / name_of_file).unlink(missing_ok=True)
    # The settings come last, and those of an earlier study go first: they vouch for the records.
    settings_file.unlink(missing_ok=True)
    write_whole(records_file, made)
    write_whole(settings_file, text)
    # As whoever comes later will read them: JSON knows no tuples.
    return read_lines(records_file)


def asked(run: Path, settings: Any) -> str:
    """The text of a study's settings.json: what was asked, of which run, and of which version of this library."""
    question = {"settings": dataclasses.asdict(settings), "run": _hash_of(run), "penstock": __version__}
    return json.dumps(question, indent=1) + "\n"


def _hash_of(run: Path) -> str:
    """Of the run's settings and the weights of its SAEs."""
    found = hashlib.sha256((run / "config.json").read_bytes())
    for weights in sorted(run.glob("saes/*/sae.safetensors")):
        found.update(weights.read_bytes())
    return found.hexdigest()
