"""Datasets of the Hugging Face Hub, streamed; a connection that breaks is opened again."""

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

from penstock.language_models.text_files import Reader, document_in, optional_package

logger = logging.getLogger(__name__)

PREFIX = "datasets:"
"""How the name of such a source begins."""

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds to wait before each new try; after the last one the error is raised."""

_NETWORK_PACKAGES = {"aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3"}


class DatasetName(NamedTuple):
    """Which part of which dataset."""

    name: str
    config: str | None
    split: str


def dataset_name(source: str) -> DatasetName:
    """Take "datasets:NAME", "datasets:NAME:CONFIG" or "datasets:NAME:CONFIG:SPLIT" apart.

    CONFIG may be empty. SPLIT is the dataset's own word for a part of it and "train" if left out; whichever it is,
    penstock divides its documents into those to train on and those held out.

    Raises:
        ValueError: it has no name, or more than these parts.
    """
    parts = source.removeprefix(PREFIX).split(":")
    if not parts[0] or len(parts) > 3:
        raise ValueError(
            f"The text source {source!r} does not name a dataset: write datasets:NAME, datasets:NAME:CONFIG or "
            "datasets:NAME:CONFIG:SPLIT, e.g. datasets:allenai/c4:en:validation."
        )
    name, config, split = [*parts, "", ""][:3]
    return DatasetName(name, config or None, split or "train")


def read_dataset(source: str, text_field: str, skip: int) -> Reader:
    """The documents of a dataset, from the one after the first `skip` on.

    Raises:
        ImportError: the package `datasets` is needed.
        ValueError: `source` does not name a dataset, or there is none of that name.
        ConnectionError: the connection broke, and so did each new one.
    """
    datasets = optional_package("datasets", extra="datasets")
    asked = dataset_name(source)
    done, failures = skip, 0
    while True:
        try:
            rows = datasets.load_dataset(asked.name, asked.config, split=asked.split, streaming=True)
            for row in rows.skip(done) if done else rows:
                found = document_in(f"{source}:{done}", row, text_field)
                done, failures = done + 1, 0
                yield found
            return
        except Exception as error:
            if not _is_connection_failure(error):
                raise
            if failures == len(WAITS):
                raise ConnectionError(
                    f"The connection to {source} broke after {done} documents and did not come back in {failures} "
                    f"tries: {error!r}. Look at the network, then go on with --resume."
                ) from error
            logger.warning(
                "%s broke off after %d documents (%r); new try in %g s.", source, done, error, WAITS[failures]
            )
            time.sleep(WAITS[failures])
            failures += 1


def _is_connection_failure(error: BaseException) -> bool:
    """Whether to try again helps: not where something does not exist, is not allowed, or is a mistake of ours."""
    return any(
        not isinstance(one, (FileNotFoundError, PermissionError, ImportError))
        and (isinstance(one, (OSError, EOFError, TimeoutError)) or _comes_from_the_network(one))
        for one in _with_causes(error)
    ) and not isinstance(error, (FileNotFoundError, PermissionError, ImportError))


def _comes_from_the_network(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in _NETWORK_PACKAGES for kind in type(error).__mro__)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
