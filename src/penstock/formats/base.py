"""The interface of a file format, and the facts of a saved SAE."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from penstock.saes import SAE, Settings


class SAEFileError(ValueError):
    """A folder does not hold an SAE that can be loaded."""


class SAEFacts(NamedTuple):
    """What a saved SAE's folder states, apart from the weights."""

    arch: str
    d_in: int
    d_sae: int
    settings: Settings
    """The architecture's own settings."""
    metadata: dict[str, Any]
    """The model and site that the SAE belongs to, and how it was trained: `model`, `site`, `recipe`, `name`, ..."""
    format: str = "penstock"
    """The name of the file format."""


class SavedSAE(NamedTuple):
    """An SAE loaded from disk, with its facts."""

    sae: SAE
    facts: SAEFacts

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the facts: model, site, recipe, ..."""
        return self.facts.metadata


class Format(Protocol):
    """A file format for SAEs: any module with these four functions."""

    def detect(self, path: Path) -> bool:
        """Whether this folder holds an SAE in the format, whole or damaged. Must not read the weights."""
        ...

    def read_facts(self, path: Path) -> SAEFacts:
        """The facts of the SAE in this folder, read without the weights.

        Raises:
            SAEFileError: a file is missing or damaged, or its contents cannot describe an SAE.
        """
        ...

    def read(self, path: Path, *, device: str) -> SavedSAE:
        """The SAE, which takes and returns raw activations, in the dtype that it was saved in.

        Raises:
            SAEFileError: see `read_facts`, or the weights do not fit the facts.
        """
        ...

    def write(self, sae: SAE, path: Path, metadata: dict[str, Any]) -> None:
        """Save an SAE that takes and returns raw activations; the folder is created if needed.

        Raises:
            OSError: the disk is full or not writable.
        """
        ...
