"""Streams datasets of the Hugging Face Hub, and reconnects if the connection breaks."""

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

from penstock.language_models.text_files import Reader, document_in, optional_package

logger = logging.getLogger(__name__)

PREFIX = "datasets:"
"""Prefix of such a source's name."""

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds to wait before each new attempt; after the last attempt the error is raised."""

_NETWORK_PACKAGES = {"aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3"}


class DatasetName(NamedTuple):
    """A dataset, its configuration and its split."""

    name: str
    config: str | None
    split: str


def dataset_name(source: str) -> DatasetName:
    """Parse "datasets:NAME", "datasets:NAME:CONFIG" or "datasets:NAME:CONFIG:SPLIT".

    CONFIG may be empty. SPLIT is one of the dataset's own splits (default: "train"). penstock divides the documents of
    that split into training and held-out documents.

    Raises:
        ValueError: the source has no name, or more parts than these.
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
    """Return the documents of a dataset after the first `skip`.

    Raises:
        ImportError: the package `datasets` is needed.
        ValueError: `source` does not name a dataset, or that dataset does not exist.
        ConnectionError: the connection broke, and all attempts to reconnect failed.
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
                    f"tries: {error!r}. Check the network, then continue with --resume."
                ) from error
            logger.warning(
                "%s broke off after %d documents (%r). Trying again in %g s.", source, done, error, WAITS[failures]
            )
            time.sleep(WAITS[failures])
            failures += 1


def _is_connection_failure(error: BaseException) -> bool:
    """Return whether a retry can help; it cannot if something is missing or forbidden, or if penstock is at fault."""
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
