"""The paper's experiments on a finished run: each a function from a run and settings to records."""

from penstock.studies.ablations import AblationsConfig, ablation_variants, ablations
from penstock.studies.concepts import ConceptsConfig, concepts
from penstock.studies.cost import CostConfig, cost
from penstock.studies.declaration import Study
from penstock.studies.dictionaries import DictionariesConfig, dictionaries
from penstock.studies.pruning import PruningConfig, pruning
from penstock.studies.pursuit import PursuitConfig, pursuit
from penstock.studies.refit import RefitStudyConfig, refit
from penstock.studies.sensitivity import SensitivityConfig, sensitivity, sensitivity_variants
from penstock.studies.shrinkage import ShrinkageConfig, shrinkage

STUDIES: dict[str, Study] = {
    "shrinkage": Study(ShrinkageConfig, shrinkage, of_saes=False),
    "ablations": Study(AblationsConfig, ablations, of_saes=True, trains=ablation_variants),
    "refit": Study(RefitStudyConfig, refit, of_saes=True),
    "pursuit": Study(PursuitConfig, pursuit, of_saes=True),
    "pruning": Study(PruningConfig, pruning, of_saes=True),
    "cost": Study(CostConfig, cost, of_saes=False),
    "sensitivity": Study(SensitivityConfig, sensitivity, of_saes=False, trains=sensitivity_variants),
    "dictionaries": Study(DictionariesConfig, dictionaries, of_saes=False),
    "concepts": Study(ConceptsConfig, concepts, of_saes=False),
}
