"""`penstock convert-gelu-1l`: converts the published files of the paper's smallest model."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from penstock.language_models.gelu_1l import convert_gelu_1l


@dataclass(frozen=True, kw_only=True)
class ConvertGelu1L:
    """Convert GELU-1L, which is not in a Hugging Face format, to a model that every command accepts."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder with config.json and the weights of NeelNanda/GELU_1L512W_C4_Code, and with the files of its
    tokenizer, NeelNanda/gpt-neox-tokenizer-digits."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder for the converted model, created if needed; files of the same names are replaced."""


def convert(options: ConvertGelu1L) -> None:
    convert_gelu_1l(options.folder, options.out)
    print(f"model: {options.out}")
    print(f"next: penstock reproduce gelu-1l --model {shlex.quote(str(options.out))}")
