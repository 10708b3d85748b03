"""Records of SAEs that a study has changed or trained, measured on the run's own held-out tokens.

The same tokens make them comparable with the run's records.jsonl. Their sums are written to
RUN/studies/NAME/sums.safetensors, from which `ratios_to_run.py` compares them with the run's arms.
"""

from collections.abc import Iterable
from typing import Any, cast

from penstock.evaluation.measuring import Described
from penstock.evaluation.sae_record import AboutSAE, Records
from penstock.evaluation.sums import SUMS_FILE, write_sums
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.study_records import study_folder


def measured_records(run: FinishedRun, study: str, described: Iterable[Described]) -> Records:
    """Measure a study's candidates, write their sums to the study's folder, and return their records."""
    measured = run.measure(described)
    folder = study_folder(run.run_dir, study)
    folder.mkdir(parents=True, exist_ok=True)
    # settings.json marks a finished study, including its sums. So it is deleted first (see `read_or_make`).
    (folder / "settings.json").unlink(missing_ok=True)
    write_sums(folder / SUMS_FILE, measured.evaluations)
    return measured.records


def about_changed(run: FinishedRun, name: str, new: str, **study: Any) -> AboutSAE:
    """The descriptive part of the record of a candidate that was made from an SAE of the run.

    Args:
        run: The run.
        name: The name of the original SAE, which the record has as `of`.
        new: The candidate's name.
        study: Further keys: `series` groups candidates in a figure. Candidates of one arm and seed with the same
            `curve` differ only in what moves them along the frontier.
    """
    # An SAE that was changed after training need not meet its target, so the record has none.
    about = {**run.about[name], "name": new, "of": name, "target_l0": None, **study, "warnings": []}
    return cast("AboutSAE", about)


def check_fit_tokens(fit_tokens: int) -> None:
    if fit_tokens < 1:
        raise ValueError(f"fit_tokens={fit_tokens} is out of range: it must be at least 1.")
