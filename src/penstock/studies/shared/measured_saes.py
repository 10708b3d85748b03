"""Records of SAEs that a study has changed or trained, measured on the run's own held-out tokens.

So they can be read together with its records.jsonl. The sums behind them are left in
RUN/studies/NAME/sums.safetensors, from which `ratios_to_run.py` compares them with the run's arms.
"""

from collections.abc import Iterable
from typing import Any

from penstock.evaluation.measuring import Described
from penstock.evaluation.sums import SUMS_FILE, write_sums
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.study_records import Record, study_folder


def measured_records(run: FinishedRun, study: str, described: Iterable[Described]) -> list[Record]:
    """Records of a study's candidates; their sums are left in its folder."""
    measured = run.measure(described)
    folder = study_folder(run.run_dir, study)
    folder.mkdir(parents=True, exist_ok=True)
    # The settings of an earlier study vouch for its sums, too: they go first (`stored`).
    (folder / "settings.json").unlink(missing_ok=True)
    write_sums(folder / SUMS_FILE, measured.evaluations)
    return measured.records


def about_changed(run: FinishedRun, name: str, new: str, **study: Any) -> dict[str, Any]:
    """What the record of a candidate made from an SAE of the run says.

    `of` names that SAE, and `series` what belongs together in a figure. The candidates of one arm and seed with the
    same `curve` differ only in what moves them along the frontier.
    """
    # No target: what is changed after training need not meet it.
    return {**run.about[name], "name": new, "of": name, "target_l0": None, **study, "warnings": []}


def check_fit_tokens(fit_tokens: int) -> None:
    if fit_tokens < 1:
        raise ValueError(f"fit_tokens={fit_tokens} is out of range: it must be at least 1.")
