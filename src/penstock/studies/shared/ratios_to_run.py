"""Firing latents that a study's SAEs need compared with the run's own arms: ratios at equal loss recovered.

A study measures on the run's own held-out tokens, so both use the same resamples, and a difference is paired by
sequence and by seed as between two arms (`comparison.py`). A curve consists of the candidates of one seed that were
made in the same way (`curve` in their records) from the SAEs of one arm. It is compared with exactly those SAEs of the
arm. Curves bend between their points, so a curve with fewer points would seem better or worse by a few percent.
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
from penstock.evaluation.statistics import resample_weights
from penstock.evaluation.stored_comparisons import read_comparison
from penstock.evaluation.sums import SUMS_FILE, SequenceSums, read_sums
from penstock.files import write_whole
from penstock.saes import BASELINE
from penstock.studies.shared.study_records import read_lines, study_folder
from penstock.training.settings.config_file import read_config


class _Series(NamedTuple):
    """What is compared: an arm of the run, or what a study made of one."""

    arm: Arm
    curve: str | None
    """How it was made; None for the arm itself."""


class Made(NamedTuple):
    """What a study made of an SAE of the run."""

    of: str
    """The SAE's name."""
    point: Point
    """Its numbers; arm and seed are those of the SAE that it was made from."""


def compare_study(run: Path, study: str) -> list[dict[str, Any]]:
    """Compare the series of a study that measures SAEs with the arms of its run; written to its comparison.json.

    Args:
        run: The run's directory, evaluated.
        study: The study's name; its records and sums lie in RUN/studies/NAME.

    Returns:
        As `series_comparisons`.

    Raises:
        FileNotFoundError: the records or sums of the run or of the study are missing.
        ValueError: the study was measured on other tokens than the run.
    """
    folder = study_folder(run, study)
    own_sums, made_sums = read_sums(run / SUMS_FILE), read_sums(folder / SUMS_FILE)
    _check_same_rows(run, folder, [*own_sums.values(), *made_sums.values()])
    weights = _weights(run, own_sums)
    own = _points(run, own_sums, weights)
    made: dict[str, list[Made]] = defaultdict(list)
    for record in read_lines(folder / "records.jsonl"):
        point = point_of(record, made_sums[record["name"]], weights)
        made[record["curve"]].append(Made(record["of"], point._replace(arm=own[record["of"]].arm)))
    found = series_comparisons(own, made)
    write_whole(folder / "comparison.json", json.dumps({"comparisons": found}, indent=1) + "\n")
    return found


def comparisons_of(run: Path, study: str) -> list[dict[str, Any]]:
    """What `compare_study` has written; empty for a study that it does not compare."""
    path = study_folder(run, study) / "comparison.json"
    return read_comparison(path)["comparisons"] if path.is_file() else []


def own_points(run: Path) -> dict[str, Point]:
    """The SAEs of an evaluated run by name, with the resamples of its own evaluation.

    Raises:
        FileNotFoundError: its records or sums are missing.
    """
    sums = read_sums(run / SUMS_FILE)
    return _points(run, sums, _weights(run, sums))


def _points(
    run: Path, sums: Mapping[str, SequenceSums], weights: Float[Tensor, "resamples sequences"]
) -> dict[str, Point]:
    return {
        record["name"]: point_of(record, sums[record["name"]], weights)
        for record in read_lines(run / "records.jsonl")
        if not is_control(record)
    }


def _weights(run: Path, sums: Mapping[str, SequenceSums]) -> Float[Tensor, "resamples sequences"]:
    settings = read_config(run).eval
    sequences = len(next(iter(sums.values()))["tokens"])
    return resample_weights(sequences, settings.bootstrap, settings.eval_seed)


def series_comparisons(own: Mapping[str, Point], made: Mapping[str, Sequence[Made]]) -> list[dict[str, Any]]:
    """The ratio of L0 at equal loss recovered of the Gated arms to each series, and of each to what it was made from.

    Args:
        own: The SAEs of the run by name.
        made: For each curve what was made in this way. The same resamples as in `own`.

    Returns:
        Entries as those of `compare`. One of `arm_curve` and `baseline_curve` says which curve is on that side, the
        other is None; `arm_label` and `baseline_label` name both sides in words. Series made from a Gated arm are
        compared with that arm and with what was made of other architectures in the same way; all others with every
        Gated arm of their site and with their own arm. Of its own arm only those SAEs count that a series was made
        from, unless they are one for each seed, or reach no quality in common with it: then the whole arm does, and
        `whole_arm` is true (as it is where neither side is an arm that the other was made from).
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
    """Of the SAEs on both sides; of an arm as far as the other side was made from them, where that gives a ratio."""
    whole = [[made.point for made in at_site[side]] for side in (arm, baseline)]
    alike = [_origins(arm, baseline, at_site), _origins(baseline, arm, at_site)]
    found = l0_ratio(*alike)
    if found["ratio"] is not None:
        return found | {"whole_arm": alike == whole}
    return l0_ratio(*whole) | {"whole_arm": True}


def _origins(one: _Series, other: _Series, at_site: Mapping[_Series, Sequence[Made]]) -> list[Point]:
    """Return the points of `one` to compare with `other`: if `one` is its arm, only the SAEs it was made from."""
    origins = {made.of for made in at_site[other]}
    own_arm = one.curve is None and one.arm == other.arm
    return [made.point for made in at_site[one] if not own_arm or made.of in origins]


def _pairs(at_site: Sequence[_Series]) -> list[tuple[_Series, _Series]]:
    """Which series are compared with which: arm, baseline."""
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
    label = f"{arm.arch} ({', '.join(details)})" if details else arm.arch
    made = "" if series.curve is None else f" with {series.curve}"
    return {**arm.role_keys(role), f"{role}_curve": series.curve, f"{role}_label": f"{label}{made}"}


def _check_same_rows(run: Path, folder: Path, sums: Sequence[SequenceSums]) -> None:
    """Sequences are pairs only if they are the same ones; the tokens that count in each tell most others apart."""
    first = sums[0]["tokens"]
    if not all(torch.equal(one["tokens"], first) for one in sums):
        raise ValueError(
            f"The study in {folder} was measured on other held-out tokens than the run, so the two cannot be compared. "
            f"Has the run's text changed? Evaluate the run again (penstock eval {run}), delete the study's folder, "
            "and make it again."
        )
