"""comparison.json as it is read back: the entries of a comparison of arms, and warnings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.json_files import (
    COUNT,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    check_keys,
    list_of,
    or_null,
    read_object,
)

_INTERVAL = or_null(list_of(NUMBER, 2))
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("site", "metric", "arm", "baseline"), TEXT),
    **dict.fromkeys(
        ("arm_recipe", "baseline_recipe", "arm_settings", "baseline_settings", "arm_curve", "baseline_curve", "reason"),
        or_null(TEXT),
    ),
    **dict.fromkeys(("arm_label", "baseline_label"), TEXT),
    **dict.fromkeys(("arm_d_sae", "baseline_d_sae"), or_null(COUNT)),
    **dict.fromkeys(("arm_lr", "baseline_lr"), or_null(NUMBER)),
    "ratio": or_null(POSITIVE),
    "interval": _INTERVAL,
    "overlap": _INTERVAL,
    "by_seed": list_of(OBJECT),
    "grid": list_of(OBJECT),
}
_POINT: Mapping[str, Kind] = {
    **dict.fromkeys(("value", "l0_arm", "l0_baseline"), NUMBER),
    "ratio": POSITIVE,
    "interval": _INTERVAL,
}


def read_comparison(path: Path) -> dict[str, Any]:
    """The contents of a comparison.json: the list `comparisons`, and for a run the list `warnings`.

    Raises:
        FileError: the file is damaged, or a value has the wrong type.
        OSError: the file cannot be read.
    """
    content = read_object(path)
    kinds = {"comparisons": list_of(OBJECT), "warnings": list_of(TEXT)}
    check_keys(content, kinds, str(path), needed=("comparisons",))
    for number, entry in enumerate(content["comparisons"], start=1):
        where = f"{path}, comparison {number}"
        check_keys(entry, _KINDS, where, needed=("site", "metric", "arm", "baseline"))
        for point in entry.get("grid", []):
            check_keys(point, _POINT, f"{where}, grid", needed=_POINT)
    return content
