"""Studies: the paper's experiments, and a few of ours, on a finished run. Each has one module and a line in STUDIES."""

from penstock.studies import (
    ablations,
    concepts,
    cost,
    dictionaries,
    pruning,
    pursuit,
    refit,
    sensitivity,
    shrinkage,
)
from penstock.studies.shared.declaration import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        shrinkage.STUDY,
        ablations.STUDY,
        refit.STUDY,
        pursuit.STUDY,
        pruning.STUDY,
        cost.STUDY,
        sensitivity.STUDY,
        dictionaries.STUDY,
        concepts.STUDY,
    )
}
"""The studies by name, in the order of a reproduction's page."""
