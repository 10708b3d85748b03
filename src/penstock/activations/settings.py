"""Settings of the text and of the activations that are harvested from it."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from penstock.settings import MAX_SEED, at_least, between, values_of


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, the number of activations, and how they are shuffled."""

    text: str = "embedded"
    """`embedded` (the source of Python's standard library), a .txt, .jsonl or .parquet file, a folder of such files, or
    datasets:NAME[:CONFIG[:SPLIT]] on the Hugging Face Hub. .txt and .jsonl files may be compressed."""
    text_field: str | None = None
    """Column of the text in .jsonl, .parquet and datasets; by default `text`."""
    packing: Literal["packed", "truncated"] = "packed"
    """`packed` joins documents with a BOS (or EOS) between them. `truncated` makes one sequence per document, cut at
    `context`."""
    context: int | None = None
    """Tokens per sequence, including BOS; by default the model's maximum, at most 1,024."""
    tokens: int = 20_000_000
    """Number of activations to train each SAE on, over all passes."""
    cache_tokens: int | None = None
    """Harvest this many activations once, keep them in memory, and pass over them until `tokens` are used. By default
    activations are streamed, and none is repeated until the text ends."""
    buffer_tokens: int | None = None
    """Activations in the shuffle buffer when streaming; by default 2^18, or `tokens` if that is less."""
    model_batch_rows: int = 32
    """Sequences per forward pass of the language model."""
    shuffle_seed: int = 0
    """Seed of the order of the activations."""
    mask_special_tokens: bool = False
    """Leave special tokens inside the texts (such as those of chat templates) out of training and evaluation."""
    max_norm_multiple: float | None = None
    """Leave out tokens whose activation norm, at one of the sites, is more than this multiple of the median."""
    skip_nonfinite: bool = False
    """Leave out and count tokens whose activations are NaN or infinite. Otherwise such tokens end the run."""

    def __post_init__(self) -> None:
        at_least("tokens", self.tokens, 1)
        at_least("model_batch_rows", self.model_batch_rows, 1)
        at_least("context", self.context, 2)
        at_least("cache_tokens", self.cache_tokens, 1)
        at_least("buffer_tokens", self.buffer_tokens, 2)
        between("shuffle_seed", self.shuffle_seed, 0, MAX_SEED)
        between("max_norm_multiple", self.max_norm_multiple, 1.5, 1e6)
        if self.cache_tokens is not None:
            if self.buffer_tokens not in (None, self.cache_tokens):
                raise ValueError(
                    f"buffer_tokens={self.buffer_tokens} has no effect with cache_tokens="
                    f"{self.cache_tokens}: a cache is shuffled as a whole. Leave one of them out."
                )
            if self.cache_tokens > self.tokens:
                raise ValueError(
                    f"cache_tokens={self.cache_tokens} is more than tokens={self.tokens}, so part of "
                    "the cache would never be used. Lower cache_tokens or raise tokens."
                )
        if self.text_field is not None and not self.has_columns:
            raise ValueError(
                f"text_field={self.text_field!r} has no effect with text={self.text!r}, which has no "
                "columns. Leave it out, or name a text with columns (.jsonl, .parquet, datasets:NAME)."
            )

    def located(self) -> "DataConfig":
        """The same settings, with the path of a file or folder made absolute, so that it works in every directory."""
        path = Path(self.text).expanduser()
        if self.text == "embedded" or not path.exists():
            return self
        return replace(self, text=os.path.abspath(path))

    @property
    def has_columns(self) -> bool:
        """Whether the text has columns."""
        return self.text != "embedded" and re.search(r"\.txt(\.\w+)?$", self.text.lower()) is None

    def resolve(self, context: Callable[[], int], *, buffer_tokens: int) -> "ResolvedData":
        """Fill in every default.

        Args:
            context: Returns the default `context`; called only if it is not set.
            buffer_tokens: The default size of the shuffle buffer.
        """
        decided = values_of(
            self,
            text_field=self.text_field or ("text" if self.has_columns else None),
            context=self.context or context(),
            buffer_tokens=self.cache_tokens or self.buffer_tokens or buffer_tokens,
        )
        return ResolvedData(**decided)


@dataclass(frozen=True, kw_only=True)
class ResolvedData(DataConfig):
    """`DataConfig` with every default filled in.

    `text_field` is None if the text has no columns, and `cache_tokens` is None if the run streams.
    """

    context: int = field()
    buffer_tokens: int = field()
    """The number of activations that are shuffled together: the size of the shuffle buffer, or of the cache."""
