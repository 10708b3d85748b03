"""penstock: train, evaluate, compare and inspect sparse autoencoders on language models."""

from penstock.formats import load_sae, save_sae
from penstock.language_models.loading import LanguageModel
from penstock.runs.sweep import run_sweep
from penstock.saes import ARCHITECTURES, SAE, Architecture, DecoderRule, GatedSAE, JumpReLUSAE, ReLUSAE
from penstock.training.settings import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    RunConfig,
    SAEConfig,
)
from penstock.training.settings.recipes import RECIPES, Recipe
from penstock.version import __version__

__all__ = [
    "ARCHITECTURES",
    "RECIPES",
    "SAE",
    "Architecture",
    "DataConfig",
    "DecoderRule",
    "EvalConfig",
    "GatedSAE",
    "JumpReLUSAE",
    "LanguageModel",
    "LanguageModelConfig",
    "OptimConfig",
    "ReLUSAE",
    "Recipe",
    "ResamplingConfig",
    "RunConfig",
    "SAEConfig",
    "__version__",
    "load_sae",
    "run_sweep",
    "save_sae",
]
