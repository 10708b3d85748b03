"""Source of a language model: a local folder, checked first, or a name on the Hub, which is asked once."""

import difflib
import json
import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
"""The language model that comes with the package, under the name "embedded"."""

ALLOWED = 'a model is "embedded", a local folder, or a name on the Hugging Face Hub such as "gpt2"'

# What a local folder must hold: at least one file for each.
_FILES = {
    "config": ("config.json",),
    "weights": ("*.safetensors", "pytorch_model*.bin"),
    "tokenizer": ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken"),
}

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_HUB_TIMEOUT = 10.0
"""Seconds to wait for the Hub's first answer."""


class Source(NamedTuple):
    """Arguments for `transformers`."""

    path: str
    """A folder, or a name on the Hub."""
    only_local: bool
    """Whether to read only the cache, because the Hub does not answer."""


def find_source(name: str, *, revision: str | None) -> Source:
    """Return the folder or the Hub's repository that a model's name refers to.

    Raises:
        FileNotFoundError: the folder does not exist, or files are missing from it.
        ValueError: the folder does not hold a model, or the Hub has no such model or does not answer.
    """
    if name == "embedded":
        _check_embedded()
        return Source(str(EMBEDDED_FOLDER), only_local=False)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_is_something_else(folder, name)
        missing = _missing(folder)
        if missing:
            raise FileNotFoundError(f"Language model {name!r}: the folder has no {', no '.join(missing)}; {ALLOWED}.")
        _check_no_pointers(folder, name)
        return Source(str(folder), only_local=False)
    if folder.suffix == ".gguf":
        raise ValueError(
            f"Language model {name!r} is a GGUF file, which is not read. Give the original model; {ALLOWED}."
        )
    if name.startswith((".", "~")) or folder.is_absolute() or folder.exists() or not _may_be_on_the_hub(name):
        raise FileNotFoundError(f"Language model {name!r}: no folder {str(folder)!r}{_nearest(folder)}; {ALLOWED}.")
    return Source(name, only_local=not _hub_answers(name, folder, revision))


def tell_code(source: str, revision: str | None) -> None:
    """Log which code that comes with a model is about to run."""
    folder = Path(source)
    if not folder.is_dir():
        at = f" at revision {revision}" if revision else ""
        logger.warning(
            "Running the code that comes with %s on the Hub%s, if it brings any (trust_remote_code).", source, at
        )
        return
    mapped = sorted({entry for file in ("config.json", "tokenizer_config.json") for entry in _auto_map(folder / file)})
    if not mapped:
        return
    # "OWNER/NAME--MODULE.CLASS" is code of another repository.
    other = [entry for entry in mapped if "--" in entry]
    files = sorted(path.name for path in folder.glob("*.py"))
    logger.warning(
        "Running the code that comes with the model in %s (trust_remote_code): %s%s",
        folder.resolve(),
        ", ".join(files) or "no file of its own",
        f"; and of the Hub {', '.join(other)}" if other else "",
    )


def _auto_map(path: Path) -> Iterator[str]:
    """Yield the classes that a model's or tokenizer's config loads from code."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    entries: Any = stored.get("auto_map", {}) if isinstance(stored, dict) else {}
    for entry in entries.values() if isinstance(entries, dict) else [entries]:
        yield from (str(one) for one in (entry if isinstance(entry, list) else [entry]) if one)


def _check_embedded() -> None:
    missing = _missing(EMBEDDED_FOLDER)
    if missing:
        raise FileNotFoundError(
            f"The embedded language model is not in this installation: {str(EMBEDDED_FOLDER)!r} has no "
            f"{', no '.join(missing)}. Reinstall penstock, train the model with tools/train_embedded_lm.py, "
            f"or choose another; {ALLOWED}."
        )


def _missing(folder: Path) -> list[str]:
    return [
        f"{what} ({' or '.join(patterns)})"
        for what, patterns in _FILES.items()
        if not any(fnmatch(path.name, pattern) for path in folder.glob("*") for pattern in patterns)
    ]


def _check_is_something_else(folder: Path, name: str) -> None:
    """Raise an error that names the content of folders that are often given instead of a model's."""
    has_config = (folder / "config.json").exists()
    found = ""
    if (folder / "adapter_config.json").exists() and not has_config:
        base = _read_key(folder / "adapter_config.json", "base_model_name_or_path")
        found = (
            f"an adapter (PEFT) of {base or 'another model'}, not a model. Merge it into that model "
            f"(merge_and_unload) and save the result, or give the model itself"
        )
    elif (folder / "cfg.json").exists() and not has_config:
        found = "a sparse autoencoder, not a language model. Give the model that it was trained on"
    elif has_config and _read_key(folder / "config.json", "saes") is not None:
        found = "a run of penstock, not a language model. Give the model that it was trained on"
    elif any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors")):
        found = "GGUF files, which are not read. Give the original model"
    if found:
        raise ValueError(f"Language model {name!r}: the folder holds {found}; {ALLOWED}.")


def _read_key(path: Path, key: str) -> Any:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored.get(key) if isinstance(stored, dict) else None


def _check_no_pointers(folder: Path, name: str) -> None:
    patterns = [pattern for group in _FILES.values() for pattern in group]
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not any(fnmatch(path.name, pattern) for pattern in patterns):
            continue
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ValueError(
                    f"Language model {name!r}: {path.name} is a pointer of Git LFS, not the file itself. Run `git lfs "
                    f"pull` in {str(folder)!r}."
                )


def _may_be_on_the_hub(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _hub_answers(name: str, folder: Path, revision: str | None) -> bool:
    """Ask the Hub for the model once; if the Hub does not answer, the model must be in the cache.

    Without this check, `transformers` retries for half a minute without a network.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    def ask(file: str) -> None:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=_HUB_TIMEOUT)

    try:
        ask("config.json")
    except EntryNotFoundError as error:
        _check_no_adapter(name, ask, error)
        return True
    # Each version of the Hub's client has its own errors for a missing network.
    except Exception as error:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            logger.warning("The Hub does not give %s (%s); it is read from the cache.", name, _first_line(error))
            return False
        what = (
            "has no model of that name that you may read"
            if isinstance(error, RepositoryNotFoundError)
            else "does not answer"
        )
        raise ValueError(
            f"Cannot load the language model {name!r}: there is no folder {str(folder)!r}{_nearest(folder)}, and the "
            f"Hub {what} ({_first_line(error)}).\n({ALLOWED})"
        ) from error
    return True


def _check_no_adapter(name: str, ask: Any, error: Exception) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        ask("adapter_config.json")
    except EntryNotFoundError:
        return
    raise ValueError(
        f"Language model {name!r} is an adapter (PEFT), not a model. Merge it into its base model (merge_and_unload) "
        f"and give the folder of the result, or give the base model itself; {ALLOWED}."
    ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _nearest(folder: Path) -> str:
    """Return a hint at the folder whose name is most similar to a mistyped one."""
    there = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, there, n=1)
    return f" (did you mean {str(folder.with_name(close[0]))!r}?)" if close else ""
