"""Architectures: one page each. To add one, write its page and a line in ARCHITECTURES."""

from penstock.saes.ablations import ABLATED, ABLATION_RECIPES
from penstock.saes.base import SAE, Loss, TrainableSAE
from penstock.saes.gated import GatedSAE
from penstock.saes.jumprelu import JumpReLUSAE
from penstock.saes.recipes import RECIPES, Recipe
from penstock.saes.relu import ReLUSAE

TRAINABLE = {"relu": ReLUSAE, "gated": GatedSAE, **ABLATED}
"""What a run may train, by name; `train` and `sweep` offer those that are not ablations."""

ARCHITECTURES = {**TRAINABLE, "jumprelu": JumpReLUSAE}
"""What can be loaded from a file."""

KNOWN_RECIPES: dict[str, Recipe] = {**RECIPES, **ABLATION_RECIPES}
"""What a run's settings may name; `train` and `sweep` offer RECIPES."""

__all__ = [
    "ABLATED",
    "ABLATION_RECIPES",
    "ARCHITECTURES",
    "KNOWN_RECIPES",
    "RECIPES",
    "SAE",
    "TRAINABLE",
    "GatedSAE",
    "JumpReLUSAE",
    "Loss",
    "ReLUSAE",
    "Recipe",
    "TrainableSAE",
]
