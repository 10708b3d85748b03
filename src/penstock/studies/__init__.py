"""The paper's experiments on a finished run: each a function from a run and settings to records."""

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
"""Every study by its name, in the order of a reproduction's page."""
