"""Architectures: one page each. To add one, write its page and a line in ARCHITECTURES."""

from penstock.saes.base import SAE, Loss, TrainableSAE
from penstock.saes.gated import GatedSAE
from penstock.saes.jumprelu import JumpReLUSAE
from penstock.saes.recipes import RECIPES, Recipe
from penstock.saes.relu import ReLUSAE

TRAINABLE: dict[str, type[GatedSAE] | type[ReLUSAE]] = {"relu": ReLUSAE, "gated": GatedSAE}
"""What `train` and `sweep` accept as an architecture."""

ARCHITECTURES: dict[str, type[GatedSAE] | type[ReLUSAE] | type[JumpReLUSAE]] = {
    **TRAINABLE,
    "jumprelu": JumpReLUSAE,
}
"""What can be loaded from a file."""

__all__ = [
    "ARCHITECTURES",
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
