"""Settings of a run: as users give them, and resolved, with every default filled in."""

from penstock.activations.settings import DataConfig, ResolvedData
from penstock.evaluation.settings import EvalConfig
from penstock.language_models.settings import LanguageModelConfig
from penstock.training.settings.optim_config import OptimConfig, ResolvedOptim
from penstock.training.settings.resampling_config import ResamplingConfig, ResolvedResampling
from penstock.training.settings.run_config import ResolvedRun, RunConfig
from penstock.training.settings.sae_config import ResolvedSAE, SAEConfig

__all__ = [
    "DataConfig",
    "EvalConfig",
    "LanguageModelConfig",
    "OptimConfig",
    "ResamplingConfig",
    "ResolvedData",
    "ResolvedOptim",
    "ResolvedResampling",
    "ResolvedRun",
    "ResolvedSAE",
    "RunConfig",
    "SAEConfig",
]
