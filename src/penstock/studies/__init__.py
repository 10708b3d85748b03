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
    "shrinkage": Study(shrinkage.ShrinkageConfig, shrinkage.shrinkage, of_saes=False),
    "ablations": Study(
        ablations.AblationsConfig, ablations.ablations, of_saes=True, trains=ablations.ablation_variants
    ),
    "refit": Study(refit.RefitStudyConfig, refit.refit, of_saes=True),
    "pursuit": Study(pursuit.PursuitConfig, pursuit.pursuit, of_saes=True),
    "pruning": Study(pruning.PruningConfig, pruning.pruning, of_saes=True),
    "cost": Study(cost.CostConfig, cost.cost, of_saes=False),
    "sensitivity": Study(
        sensitivity.SensitivityConfig, sensitivity.sensitivity, of_saes=False, trains=sensitivity.sensitivity_variants
    ),
    "dictionaries": Study(dictionaries.DictionariesConfig, dictionaries.dictionaries, of_saes=False),
    "concepts": Study(concepts.ConceptsConfig, concepts.concepts, of_saes=False),
}
