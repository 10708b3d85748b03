"""The record of an SAE or a control: its keys, the kinds of their values, and the check of records from a file."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict, cast, get_type_hints

from penstock.json_files import COUNT, NUMBER, OBJECT, TEXT, Kind, check_keys, list_of, object_of, or_null
from penstock.saes import NO_SETTINGS, Settings

TextOrNone = Annotated[str | None, or_null(TEXT)]
CountOrNone = Annotated[int | None, or_null(COUNT)]
NumberOrNone = Annotated[float | None, or_null(NUMBER)]


Records = Sequence[Mapping[str, Any]]
"""Records of any kind: of SAEs, or a study's own rows."""


class DensityHistogram(TypedDict):
    """Numbers of latents by the share of tokens on which they fire."""

    log10_edges: list[float]
    """Edges of the bins, in log10 of the share; one more than `counts`."""
    counts: list[int]
    never_fired: int


_HISTOGRAM = Kind(
    "a histogram of log10_edges, counts and never_fired",
    lambda value: (
        isinstance(value, dict)
        and list_of(NUMBER).fits(value.get("log10_edges"))
        and list_of(COUNT).fits(value.get("counts"))
        and len(value["log10_edges"]) == len(value["counts"]) + 1
        and COUNT.fits(value.get("never_fired"))
    ),
)


class _AboutOwnSettings(TypedDict, total=False):
    """The part of a record that only an architecture with settings of its own has."""

    settings: Annotated[dict[str, Any] | None, or_null(OBJECT)]


class AboutSAE(_AboutOwnSettings):
    """The part of a record that is not measured (docs/records.md), in the order in which it is written."""

    name: Annotated[str, TEXT]
    arch: Annotated[str, TEXT]
    d_in: CountOrNone
    d_sae: CountOrNone
    recipe: TextOrNone
    model: TextOrNone
    site: Annotated[str, TEXT]
    sparsity_coef: NumberOrNone
    paper_lambda: NumberOrNone
    target_l0: NumberOrNone
    coef_path: Annotated[list[float | None] | None, or_null(list_of(or_null(NUMBER)))]
    seed: CountOrNone
    lr: NumberOrNone
    lr_rule: TextOrNone
    steps: CountOrNone
    batch_size: CountOrNone
    tokens_trained: CountOrNone
    unique_tokens: CountOrNone
    passes: NumberOrNone
    train_seconds: NumberOrNone
    resampled: CountOrNone
    warnings: Annotated[list[str] | None, or_null(list_of(TEXT))]


class SAERecord(AboutSAE):
    """A line of records.jsonl: one SAE's or control's numbers (docs/records.md)."""

    tokens_evaluated: NumberOrNone
    sequences_evaluated: NumberOrNone
    l0: NumberOrNone
    l0_median: NumberOrNone
    l0_p5: NumberOrNone
    l0_p95: NumberOrNone
    l1: NumberOrNone
    mse: NumberOrNone
    fvu: NumberOrNone
    cosine: NumberOrNone
    reconstruction_bias: NumberOrNone
    ce_clean: NumberOrNone
    ce_spliced: NumberOrNone
    ce_zero: NumberOrNone
    ce_mean: NumberOrNone
    delta_ce: NumberOrNone
    kl: NumberOrNone
    loss_recovered: NumberOrNone
    loss_recovered_mean: NumberOrNone
    frac_alive: NumberOrNone
    frac_dense: NumberOrNone
    intervals: Annotated[dict[str, list[float] | None] | None, or_null(object_of(or_null(list_of(NUMBER, 2))))]
    density_histogram: Annotated[DensityHistogram | None, or_null(_HISTOGRAM)]


_KINDS: dict[str, Kind] = {
    key: declared.__metadata__[0] for key, declared in get_type_hints(SAERecord, include_extras=True).items()
}
_NEEDED = tuple(key for key, kind in _KINDS.items() if not kind.fits(None))


def about_sae(
    arch: str, d_in: int, d_sae: int, metadata: Mapping[str, Any], settings: Settings = NO_SETTINGS
) -> AboutSAE:
    """Return the part of a record that is not measured. Keys that `metadata` does not have are None."""
    known = {key: metadata.get(key) for key in AboutSAE.__annotations__ if key in AboutSAE.__required_keys__}
    own = {"settings": settings.to_json()} if settings.names() else {}
    return cast("AboutSAE", {**known, "arch": arch, "d_in": d_in, "d_sae": d_sae, **own})


def checked_record(row: Mapping[str, Any], where: str) -> SAERecord:
    """Return a row of a file as a record. A key that is missing is None; keys of other programs are kept.

    Args:
        row: The row.
        where: Its file and line, for the error.

    Raises:
        FileError: a value has the wrong type, or name, architecture or site is missing.
    """
    check_keys(row, _KINDS, where, needed=_NEEDED)
    return cast("SAERecord", {**row, **dict.fromkeys(sorted(SAERecord.__required_keys__ - row.keys()))})
