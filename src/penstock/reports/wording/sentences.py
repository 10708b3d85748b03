"""Sentences and number formats of the report. Nothing here computes a metric."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from penstock.charts.arm_looks import ArmLook, arch_name, arm_index
from penstock.evaluation.arms import Arm, is_control
from penstock.evaluation.sae_record import SAERecord
from penstock.reports.data.run_data import RunData
from penstock.reports.wording.definitions import LABELS

MOST_OWN_NUMBERS = 6
"""Most SAEs named at the top of a report without a comparison; the table lists all."""

_METRIC_WORDS = {"loss_recovered": "loss recovered", "delta_ce": "delta CE", "kl": "KL"}


class Comparison(NamedTuple):
    """One entry of comparison.json in words."""

    site: str
    metric: str
    """The quality that is held equal, as it reads inside a sentence."""
    column: str
    """The same quality as a column head."""
    arm: str
    baseline: str
    sentence: str
    ratio: float | None
    interval: list[float] | None
    grid: list[dict[str, Any]]
    """Ratios at single values of the metric."""
    reason: str | None


class Range(NamedTuple):
    """Smallest and largest value of a metric over an arm's records."""

    label: str
    low: float
    high: float


class WarningGroup(NamedTuple):
    """Warnings of one kind, each as a pair: name of the SAE ("" for the whole run), and text."""

    title: str
    items: list[tuple[str, str]]


def number(value: float | int | None) -> str:
    """Format a number with four significant digits, integers in full, and an en dash for a missing value."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return _minus(f"{value:,}")
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        mantissa, exponent = f"{value:.3e}".split("e")
        return _minus(f"{mantissa}e{int(exponent)}")
    return _minus(f"{value:,.0f}" if size >= 1000 else f"{value:#.4g}")


def short(value: float) -> str:
    """Format a number for prose: four significant digits without trailing zeros."""
    return _minus(f"{value:.4g}")


def ratio_text(value: float) -> str:
    """Format a ratio for prose: three significant digits, so that a narrow interval does not collapse to its ratio."""
    return f"{value:#.3g}"


def duration(seconds: float) -> str:
    """Format seconds in words, e.g. "6 min 12 s"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"


def comparisons(run: RunData, arms: Sequence[ArmLook]) -> list[Comparison]:
    """Return every comparison of comparison.json in words, in the same order."""
    items = (run.comparison or {}).get("comparisons", [])
    return [
        Comparison(
            site=str(item["site"]),
            metric=metric_words(item["metric"]),
            column=LABELS.get(str(item["metric"]), str(item["metric"])),
            arm=_arm_label(item, "arm", arms),
            baseline=_arm_label(item, "baseline", arms),
            sentence=comparison_sentence(item, _arm_label(item, "arm", arms), _arm_label(item, "baseline", arms)),
            ratio=item.get("ratio"),
            interval=item.get("interval"),
            grid=item.get("grid") or [],
            reason=item.get("reason"),
        )
        for item in items
    ]


def comparison_sentence(item: dict[str, Any], arm: str, baseline: str) -> str:
    """Return one comparison in words: the ratio with its interval, "no difference shown", or why there is no ratio.

    Args:
        item: An entry of `comparisons` in comparison.json.
        arm: Name of the arm.
        baseline: Name of the arm that it is compared with.
    """
    metric = metric_words(item["metric"])
    arm, baseline = f"the {arm} SAE", f"the {baseline} baseline"
    ratio, interval, overlap = item.get("ratio"), item.get("interval"), item.get("overlap")
    if ratio is None:
        reason = str(item.get("reason") or "no reason is recorded").rstrip(".")
        return f"No ratio between {arm} and {baseline} at equal {metric}: {reason}."
    over = f", over {metric} {short(overlap[0])} to {short(overlap[1])}" if overlap else ""
    needs = f"needs {ratio_text(ratio)}× the firing latents of {baseline}"
    if interval is None:
        return f"At equal {metric} {arm} {needs}{over}; without an interval this is no evidence of a difference."
    words = f"95% interval {ratio_text(interval[0])} to {ratio_text(interval[1])}"
    if interval[0] <= 1.0 <= interval[1]:
        return (
            f"At equal {metric} no difference is shown between {arm} and {baseline}: "
            f"ratio of firing latents {ratio_text(ratio)} ({words}){over}."
        )
    return f"At equal {metric} {arm} {needs} ({words}){over}."


def own_numbers(records: Sequence[SAERecord]) -> list[str]:
    """Return one sentence with the main numbers of each SAE, for the top of a run without a comparison."""
    found = []
    for record in records:
        if is_control(record):
            continue
        parts = [
            f"{LABELS[key]} {number(record[key])}{_bounds(record, key)}"
            for key in ("l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias")
            if record.get(key) is not None
        ]
        found.append(f"{record.get('name')}: {', '.join(parts) or 'nothing could be measured'}.")
    return found[:MOST_OWN_NUMBERS]


def _bounds(record: Mapping[str, Any], key: str) -> str:
    bounds = (record.get("intervals") or {}).get(key)
    return f" ({number(bounds[0])} to {number(bounds[1])})" if bounds else ""


def ratio_reading(item: Mapping[str, Any]) -> str:
    """Return the reading of a ratio of firing latents: "fewer", "more", "no difference shown", or why there is none."""
    ratio, interval = item.get("ratio"), item.get("interval")
    if ratio is None:
        return f"no ratio: {str(item.get('reason') or 'no reason is recorded').rstrip('.')}"
    if interval is None or interval[0] <= 1.0 <= interval[1]:
        return "no difference shown"
    return "fewer" if ratio < 1 else "more"


def model_words(model: str) -> str:
    """Return a language model's name as it reads inside a sentence."""
    return "the embedded language model" if model == "embedded" else model


def metric_words(metric: str) -> str:
    """Return a metric's name as it reads inside a sentence."""
    return _METRIC_WORDS.get(metric) or LABELS.get(metric) or metric


def bias_ranges(records: Sequence[SAERecord], arms: Sequence[ArmLook]) -> list[Range]:
    """Return the smallest and largest recorded gamma of each arm; arms without one are left out."""
    ranges = []
    for index, arm in enumerate(arms):
        values = [
            bias
            for record in records
            if arm_index(record, arms) == index and (bias := record["reconstruction_bias"]) is not None
        ]
        if values:
            ranges.append(Range(arm.label, min(values), max(values)))
    return ranges


def warning_groups(run: RunData) -> list[WarningGroup]:
    """The warnings of the run and of its records, grouped by kind."""
    of_run = [("", str(text)) for text in (run.comparison or {}).get("warnings", [])]
    of_records = [(str(one.get("name")), str(text)) for one in run.records for text in one.get("warnings") or []]
    return grouped_warnings([*of_run, *of_records])


def grouped_warnings(warnings: Sequence[tuple[str, str]]) -> list[WarningGroup]:
    """Pairs of an SAE's name and a warning, grouped by kind, which is the text before the colon."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, text in warnings:
        _add_warning(groups, name, text)
    return [WarningGroup(title, items) for title, items in groups.items()]


def run_card(run: RunData) -> list[tuple[str, str]]:
    """Return the label and value of each line of the run card."""
    saes = [record for record in run.records if not is_control(record)] or run.records
    env = run.environment
    rows = [
        ("Language model", _values(run.records, "model")),
        ("Site", _sites_text(run.records)),
        ("Texts", texts_of(run.config)),
        ("Trained on", _training_text(saes)),
        ("Evaluated on", _evaluation_text(run.records)),
        ("Masks", "BOS and padding excluded, in training and evaluation alike"),
        ("Seeds", _values(saes, "seed")),
        ("SAEs", f"{len([r for r in run.records if not is_control(r)])}, d_sae {_values(saes, 'd_sae')}"),
        ("Training time", _time_text(run, saes)),
        ("Started", _moment(env.get("started"))),
        ("Git commit", str(env.get("git_commit") or "not recorded")[:12]),
        ("Hardware", _hardware(env)),
        ("Versions", _versions(env)),
        ("Command", str(env.get("command") or "–")),
    ]
    return [(label, value) for label, value in rows if value]


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a nested dict to (dotted key, value as text) pairs; lists of plain values stay on one line."""
    rows = []
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            rows += flatten(value, f"{key}.")
        else:
            rows.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def texts_of(config: dict[str, Any]) -> str:
    """Return the source of the texts, from the setting data.text."""
    text = config.get("data", {}).get("text")
    if text == "embedded":
        return "embedded corpus: source code of the Python standard library"
    return str(text or "not recorded")


def _add_warning(groups: dict[str, list[tuple[str, str]]], name: str, text: str) -> None:
    kind, colon, rest = text.partition(": ")
    if colon and len(kind) <= 40:
        groups.setdefault(_sentence_case(kind), []).append((name, rest))
    else:
        groups.setdefault("Other", []).append((name, text))


def _sentence_case(text: str) -> str:
    """Capitalise the first letter, unless the text starts with a key or a site, whose spelling matters."""
    return text if "_" in text.split(" ")[0] else text[:1].upper() + text[1:]


def _arm_label(item: dict[str, Any], side: str, arms: Sequence[ArmLook]) -> str:
    """Return the label of a comparison's arm, or its architecture's name if the records do not contain the arm."""
    key = Arm.in_role(item, side)
    labels = [arm.label for arm in arms if arm.key == key]
    return labels[0] if labels else arch_name(item[side])


def _values(records: Iterable[Mapping[str, Any]], key: str) -> str:
    """Return the distinct values of a key over the records, sorted, as one text."""
    values = {record[key] for record in records if record.get(key) is not None}
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in ordered) or "–"


def _span(records: Iterable[Mapping[str, Any]], key: str) -> str:
    """Return one number as text, or the smallest and the largest."""
    values = sorted({record[key] for record in records if record.get(key) is not None})
    if not values:
        return "–"
    ends = [values[0]] if len(values) == 1 else [values[0], values[-1]]
    return " to ".join(f"{end:,}" if isinstance(end, int) else short(end) for end in ends)


def _sites_text(records: Sequence[SAERecord]) -> str:
    # Records of controls may lack a width.
    widths = {record["site"]: None for record in records if record.get("site")}
    widths |= {record["site"]: record["d_in"] for record in records if record.get("site") and record.get("d_in")}
    return ", ".join(f"{site} (d_in {width})" if width else str(site) for site, width in widths.items())


def _training_text(saes: Sequence[SAERecord]) -> str:
    return (
        f"{_span(saes, 'tokens_trained')} tokens per SAE: "
        f"{_span(saes, 'unique_tokens')} unique, {_span(saes, 'passes')} passes"
    )


def _evaluation_text(records: Sequence[SAERecord]) -> str:
    sequences = _span(records, "sequences_evaluated")
    return f"{_span(records, 'tokens_evaluated')} held-out tokens in {sequences} sequences"


def _time_text(run: RunData, saes: Sequence[SAERecord]) -> str:
    logged = [row["seconds"] for row in run.metrics if row.get("seconds") is not None]
    own = [seconds for record in saes if (seconds := record["train_seconds"]) is not None]
    parts = [f"{duration(max(logged))} for all SAEs together"] if logged else []
    if own:
        parts.append(f"{duration(min(own))} to {duration(max(own))} of it for each")
    return "; ".join(parts) or "–"


def _moment(iso: str | None) -> str:
    """Format a date and time to the minute; a text that is not ISO 8601 is returned unchanged."""
    try:
        moment = datetime.fromisoformat(str(iso).replace("Z", "+00:00"))
    except ValueError:
        return str(iso or "–")
    return moment.strftime("%Y-%m-%d %H:%M %Z").strip()


def _hardware(env: dict[str, Any]) -> str:
    threads = env.get("threads")
    counted = threads and f"{threads} {'thread' if threads == 1 else 'threads'}"
    parts = [env.get("device"), env.get("cpu"), counted, env.get("platform")]
    return ", ".join(str(part) for part in parts if part) or "–"


def _versions(env: dict[str, Any]) -> str:
    parts = [f"{key} {env[key]}" for key in ("penstock", "python", "torch", "transformers") if env.get(key)]
    return ", ".join(parts) or "–"


def _minus(text: str) -> str:
    """Replace a leading hyphen by a true minus sign; exponents keep their hyphen."""
    return f"−{text[1:]}" if text.startswith("-") else text
