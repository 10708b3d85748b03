"""SAEs on disk."""

from penstock.formats.native import SAEFileError, load_sae, save_sae

__all__ = ["SAEFileError", "load_sae", "save_sae"]
