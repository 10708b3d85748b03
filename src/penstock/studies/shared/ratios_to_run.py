"""Ratios of L0 at equal loss recovered between a study's SAEs and the run's own arms.

A study measures on the run's own held-out tokens with the same resamples. So differences are paired by sequence and by
seed, as between two arms (see `comparison.py`). A curve consists of the candidates of one seed that were made in the
same way (`curve` in their records) from the SAEs of one arm. It is compared with exactly those SAEs of the arm. Curves
bend between their points, so a curve with fewer points would seem better or worse by a few percent.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from penstock.evaluation.arms import Arm, is_control
from penstock.evaluation.comparison import Point, l0_ratio, point_of
from penstock.evaluation.sae_record import checked_record
from penstock.evaluation.statistics import resample_weights
from penstock.evaluation.stored_comparisons import read_comparison
from penstock.evaluation.sums import SUMS_FILE, SequenceSums, read_sums
from penstock.files import write_whole
from penstock.saes import BASELINE
from penstock.studies.shared.study_records import read_lines, study_folder
from penstock.training.settings.config_file import read_config


class _Series(NamedTuple):
    """One side of a comparison: an arm of the run, or a curve that a study made from it."""

    arm: Arm
    curve: str | None
    """The curve; None for the arm itself."""


class Made(NamedTuple):
    """An SAE that a study made from an SAE of the run."""

    of: str
    """The name of the original SAE."""
    point: Point
    """The new SAE's numbers, with the arm and seed of the original."""


def compare_study(run_dir: Path, study: str) -> list[dict[str, Any]]:
    """Compare the SAEs of a study with the arms of its run, and write the result to the study's comparison.json.

    Args:
        run_dir: The directory of an evaluated run.
        study: The name of a study that measures SAEs; its records and sums are in RUN/studies/NAME.

    Returns:
        The entries of `series_comparisons`.

    Raises:
        FileNotFoundError: the records or sums of the run or of the study are missing.
        ValueError: the study was measured on other tokens than the run.
    """
    folder = study_folder(run_dir, study)
    own_sums, made_sums = read_sums(run_dir / SUMS_FILE), read_sums(folder / SUMS_FILE)
    _check_same_rows(run_dir, folder, [*own_sums.values(), *made_sums.values()])
    weights = _weights(run_dir, own_sums)
    own = _points(run_dir, own_sums, weights)
    made: dict[str, list[Made]] = defaultdict(list)
    for record in read_lines(folder / "records.jsonl"):
        checked = checked_record(record, str(folder / "records.jsonl"))
        point = point_of(checked, made_sums[checked["name"]], weights)
        made[record["curve"]].append(Made(record["of"], point._replace(arm=own[record["of"]].arm)))
    found = series_comparisons(own, made)
    write_whole(folder / "comparison.json", json.dumps({"comparisons": found}, indent=1) + "\n")
    return found


def comparisons_of(run_dir: Path, study: str) -> list[dict[str, Any]]:
    """The comparisons that `compare_study` has written; empty for a study that does not measure SAEs."""
    path = study_folder(run_dir, study) / "comparison.json"
    return read_comparison(path)["comparisons"] if path.is_file() else []


def own_points(run_dir: Path) -> dict[str, Point]:
    """The points of an evaluated run's SAEs by name, with the bootstrap resamples of its evaluation.

    Raises:
        FileNotFoundError: the run's records or sums are missing.
    """
    sums = read_sums(run_dir / SUMS_FILE)
    return _points(run_dir, sums, _weights(run_dir, sums))


def _points(
    run_dir: Path, sums: Mapping[str, SequenceSums], weights: Float[Tensor, "resamples sequences"]
) -> dict[str, Point]:
    return {
        record["name"]: point_of(record, sums[record["name"]], weights)
        for line in read_lines(run_dir / "records.jsonl")
        if not is_control(record := checked_record(line, str(run_dir / "records.jsonl")))
    }


def _weights(run_dir: Path, sums: Mapping[str, SequenceSums]) -> Float[Tensor, "resamples sequences"]:
    settings = read_config(run_dir).eval
    sequences = len(next(iter(sums.values()))["tokens"])
    return resample_weights(sequences, settings.bootstrap, settings.eval_seed)


def series_comparisons(own: Mapping[str, Point], made: Mapping[str, Sequence[Made]]) -> list[dict[str, Any]]:
    """The ratios of L0 at equal loss recovered between the curves of a study and the arms of its run.

    A curve made from a baseline is compared with every other arm at its site and with its own arm. A curve made from
    another arm is compared with that arm, and with the curves made in the same way from baselines.

    Against its own arm, a curve is compared only with the SAEs that it was made from. If these are one for each seed,
    or share no range of loss recovered with the curve, it is compared with the whole arm.

    Args:
        own: The SAEs of the run by name.
        made: The SAEs of each curve, with the same resamples as `own`.

    Returns:
        Entries like those of `compare`, with the following keys in addition. `arm_curve` and `baseline_curve` are the
        curve on each side, or None for an arm of the run. `arm_label` and `baseline_label` describe both sides in
        words. `whole_arm` says whether all SAEs of both sides were used.
    """
    by_site: dict[str, dict[_Series, list[Made]]] = defaultdict(lambda: defaultdict(list))
    for curve, points in {None: [Made(*item) for item in own.items()], **made}.items():
        for one in points:
            by_site[one.point.site][_Series(one.point.arm, curve)].append(one)
    return [
        {"site": site, **_named("arm", one, at_site), **_named("baseline", other, at_site)}
        | _ratio(one, other, at_site)
        for site, at_site in by_site.items()
        for one, other in _pairs(list(at_site))
    ]


def _ratio(arm: _Series, baseline: _Series, at_site: Mapping[_Series, Sequence[Made]]) -> dict[str, Any]:
    """The ratio of two sides, from only the SAEs that the other side was made from if that gives a ratio."""
    whole = [[made.point for made in at_site[side]] for side in (arm, baseline)]
    alike = [_origins(arm, baseline, at_site), _origins(baseline, arm, at_site)]
    found = l0_ratio(*alike)
    if found["ratio"] is not None:
        return found | {"whole_arm": alike == whole}
    return l0_ratio(*whole) | {"whole_arm": True}


def _origins(one: _Series, other: _Series, at_site: Mapping[_Series, Sequence[Made]]) -> list[Point]:
    """The points of `one` to compare with `other`: if `other` was made from arm `one`, only its original SAEs."""
    origins = {made.of for made in at_site[other]}
    own_arm = one.curve is None and one.arm == other.arm
    return [made.point for made in at_site[one] if not own_arm or made.of in origins]


def _pairs(at_site: Sequence[_Series]) -> list[tuple[_Series, _Series]]:
    """The pairs of series to compare, each as (arm, baseline)."""
    arms = [one for one in at_site if one.curve is None]
    rivals = [arm for arm in arms if arm.arm.arch != BASELINE]
    found = []
    for series in at_site:
        if series.curve is None:
            continue
        own = [arm for arm in arms if arm.arm == series.arm]
        if series.arm.arch != BASELINE:
            found += [(arm, series) for arm in own]
            found += [
                (series, other) for other in at_site if other.curve == series.curve and other.arm.arch == BASELINE
            ]
        else:
            found += [(arm, series) for arm in rivals] + [(series, arm) for arm in own]
    return found


def _named(role: str, series: _Series, at_site: Mapping[_Series, Any]) -> dict[str, Any]:
    arm = series.arm
    alike = {other.arm for other in at_site if other.arm.arch == arm.arch}
    details = [str(arm.recipe)] if len({other.recipe for other in alike}) > 1 else []
    details += [f"{arm.d_sae:,} latents"] if len({other.d_sae for other in alike}) > 1 else []
    details += [f"lr {arm.lr:g}"] if arm.lr is not None and len({other.lr for other in alike}) > 1 else []
    details += [arm.settings] if arm.settings is not None and len({other.settings for other in alike}) > 1 else []
    label = f"{arm.arch} ({', '.join(details)})" if details else arm.arch
    made = "" if series.curve is None else f" with {series.curve}"
    return {**arm.role_keys(role), f"{role}_curve": series.curve, f"{role}_label": f"{label}{made}"}


def _check_same_rows(run_dir: Path, folder: Path, sums: Sequence[SequenceSums]) -> None:
    """Raise ValueError if the sequences are not the same, judged by the number of tokens that count in each."""
    first = sums[0]["tokens"]
    if not all(torch.equal(one["tokens"], first) for one in sums):
        raise ValueError(
            f"The study in {folder} was measured on other held-out tokens than the run, so they cannot be compared. "
            f"The run's text may have changed. Evaluate the run again (penstock eval {run_dir}), delete the study's "
            "folder, and make the study again."
        )
