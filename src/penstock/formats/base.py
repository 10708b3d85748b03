"""What a format offers, and what is known of an SAE on disk."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from penstock.saes import SAE, Settings


class SAEFileError(ValueError):
    """A folder does not hold an SAE that can be loaded."""


class SAEFacts(NamedTuple):
    """Information about an SAE in its folder, apart from the weights."""

    arch: str
    d_in: int
    d_sae: int
    settings: Settings
    """The architecture's own."""
    metadata: dict[str, Any]
    """Where it belongs and how it was made: `model`, `site`, `recipe`, `name`, ..."""
    format: str = "penstock"
    """Name of the format that it is stored in."""


class SavedSAE(NamedTuple):
    """An SAE from disk and what is known of it."""

    sae: SAE
    facts: SAEFacts

    @property
    def metadata(self) -> dict[str, Any]:
        """Where it belongs and how it was made."""
        return self.facts.metadata


class Format(Protocol):
    """A way of storing SAEs in folders; a module with these four functions is one."""

    def detect(self, path: Path) -> bool:
        """Whether this folder holds an SAE of the format, whole or damaged; reads no weights."""
        ...

    def read_facts(self, path: Path) -> SAEFacts:
        """What the folder says of its SAE, without reading the weights.

        Raises:
            SAEFileError: a file is missing, damaged, or holds what cannot be an SAE.
        """
        ...

    def read(self, path: Path, *, device: str) -> SavedSAE:
        """The SAE, which takes and returns raw activations, in the dtype it was saved in.

        Raises:
            SAEFileError: see `read_facts`; or the weights do not fit what the folder says.
        """
        ...

    def write(self, sae: SAE, path: Path, metadata: dict[str, Any]) -> None:
        """Write an SAE that takes and returns raw activations; the folder is made if needed.

        Raises:
            OSError: the disk is full or not writable.
        """
        ...
