"""`LanguageModel`: any causal language model of Hugging Face `transformers`, to read and to edit."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.language_models.hooks import Edit, captured, spliced
from penstock.language_models.prefix import Prefix, blocks_before, recorded, replayed
from penstock.language_models.pretrained import load_pretrained
from penstock.language_models.sites import Site, example_path, find_site, named_sites
from penstock.language_models.stdlib_corpus import Document
from penstock.language_models.survey import Survey, survey
from penstock.language_models.tokens import tokenise
from penstock.shapes import Logits, Tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NO_LIMIT = 10**9
"""A context of at least this value means that neither the config nor the tokenizer states one."""

logger = logging.getLogger(__name__)

TextOrTokens = str | Int[Tensor, " positions"] | Tokens
"""A text, the token ids of one row, or rows of them."""

RowActs = Float[Tensor, "*rows positions d_in"]
"""Activations of one row or of several."""

# Where the configs of different families keep the number of positions a model takes.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


class LanguageModel:
    """A causal language model in evaluation mode whose activations can be read and replaced by site.

    Rows of tokens may be padded on the right. No attention mask is needed: in a causal model a position sees only
    earlier ones, so padding changes nothing before it.
    """

    name: str
    """As given to `load`."""
    module: "PreTrainedModel"
    """The Hugging Face model; its parameters take no gradients."""
    tokenizer: "PreTrainedTokenizerBase"
    """Its Hugging Face tokenizer."""
    context: int
    """Most positions that the model accepts. If its config does not say, the tokenizer's `model_max_length`, which is
    10^30 in models without a limit."""
    num_layers: int
    vocab_size: int
    sites: dict[str, Site]
    """The named sites (see `penstock.language_models.sites`); the path of any module is a site too."""

    def __init__(self, module: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        text_config = module.config.get_text_config()
        self.name = name
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.context = _context(text_config, tokenizer)
        self.num_layers = text_config.num_hidden_layers
        self.vocab_size = text_config.vocab_size
        self.sites = named_sites(module, text_config.model_type, self.num_layers)
        self._widths: dict[str, int] = {}

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        device_map: str | Mapping[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "LanguageModel":
        """Load a model and its tokenizer.

        Args:
            name_or_path: "embedded" for the model in the package, a local folder, or a name on the Hub.
            dtype: "float32", "bfloat16" or "float16".
            device: Device of the model: "cpu", "cuda", "cuda:1", ...; not together with `device_map`.
            device_map: Spreads a model over several devices ("auto", or module paths to devices);
                needs the package `accelerate`.
            revision: Branch, tag or commit on the Hub.
            trust_remote_code: Whether code that comes with the weights may run on this machine.

        Raises:
            FileNotFoundError: the folder does not exist, or files are missing from it.
            ValueError: the dtype, device or model is unknown, the model is not a causal language model, or weights are
                missing from the checkpoint.
        """
        name = str(name_or_path)
        module, tokenizer = load_pretrained(
            name,
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        return cls(module, tokenizer, name)

    @property
    def device(self) -> torch.device:
        """Device of the embedding, i.e. of the model's inputs."""
        return next(self.module.get_input_embeddings().parameters()).device

    @property
    def is_spread(self) -> bool:
        """Whether it was loaded with a `device_map`."""
        return getattr(self.module, "hf_device_map", None) is not None

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the model and of its activations."""
        return self.module.dtype

    @property
    def site_names(self) -> list[str]:
        """The named sites, layer by layer in the order in which they are computed."""
        return list(self.sites)

    @property
    def middle_site(self) -> str:
        """The residual stream that leaves the middle block: the default site for training.

        Raises:
            ValueError: the blocks of this model are not known by name.
        """
        site = f"resid_post.{self.num_layers // 2}"
        if site not in self.sites:
            raise ValueError(
                f"{self.name!r} is a {self.module.config.model_type!r} model, a family without named sites, so "
                f"there is no default site. Give one: the input or output of any module, for example "
                f"{self.example_site!r}."
            )
        return site

    @property
    def example_site(self) -> str:
        """The path of a site deep inside the model, as an example of such paths."""
        return example_path(self.module)

    def d_in(self, site: str) -> int:
        """Return the width of the activation at a site.

        Raises:
            ValueError: the model has no such site, its module runs more than once in a forward pass, or the model does
                not read from left to right.
        """
        if site not in self._widths:
            place = find_site(site, self.sites, self.module)
            self._widths[site] = self._survey.width(site, place)
            # The named sites are tested family by family.
            if place not in self.sites.values() and not self._has_effect(site):
                logger.warning(
                    "Replacing the activation at %r does not change the model's output, because the model uses "
                    "something else that this module returns, as with a router. An SAE can be trained there, but its "
                    "loss recovered has no meaning.",
                    site,
                )
        return self._widths[site]

    def tokens(self, text: str) -> Int[Tensor, " positions"]:
        """Return the token ids of a text as training reads them: BOS (or else EOS) first, cut at `context`.

        Raises:
            ValueError: the text has no tokens, or tokens that the model does not accept.
        """
        rows = list(
            tokenise(
                [Document("text", text)],
                self.tokenizer,
                context=self.context,
                packing="truncated",
                vocab_size=self.vocab_size,
            )
        )
        if not rows:
            raise ValueError(f"{text[:40]!r} has no tokens that {self.name!r} takes. Give another text.")
        ((row, counts),) = rows
        return row[: int(counts.nonzero()[-1]) + 1]

    @overload
    def activations(self, tokens: TextOrTokens, sites: str) -> RowActs: ...

    @overload
    def activations(self, tokens: TextOrTokens, sites: Sequence[str]) -> dict[str, RowActs]: ...

    @torch.no_grad()
    def activations(self, tokens: TextOrTokens, sites: str | Sequence[str]) -> RowActs | dict[str, RowActs]:
        """Return the activations at some sites; the forward pass stops after the deepest site.

        Position 0 of a text is its BOS, which training leaves out: use `[1:]` for what SAEs are trained on.

        Args:
            tokens: A text (see `tokens`), the token ids of one row [positions], or rows of them [sequences, positions],
                on any device.
            sites: A name or module path, or several of them.

        Returns:
            The activations [positions, d_in] of a text or one row, or [sequences, positions, d_in] of rows. For several
            sites, a dict by site in the order of `sites`. Dtype and device are those of the model at that site.

        Raises:
            ValueError: unknown site, a site without one activation per token, or tokens that the model does not accept.
        """
        if not sites:
            raise ValueError(f"sites must name at least one site, got {sites!r}.")
        ids = self.tokens(tokens) if isinstance(tokens, str) else tokens
        rows = ids[None] if ids.ndim == 1 else ids
        places = self._places([sites] if isinstance(sites, str) else sites)
        with captured(self.module, places, _shape(rows)) as found:
            self._forward(rows)
        acts = {site: found[site][0] if ids.ndim == 1 else found[site] for site in places}
        return acts[sites] if isinstance(sites, str) else acts

    @torch.no_grad()
    def prefix(self, tokens: Tokens, site: str) -> Prefix | None:
        """Return the output of the blocks before a site for some tokens, from which `logits` can start at that site.

        It is None if nothing can be saved: the site lies in the first block or outside the blocks, or the model's
        blocks are not known by name or run more than once.
        """
        blocks = blocks_before(find_site(site, self.sites, self.module), self.sites, self.num_layers)
        # A block that runs again after the site must not return its earlier output there.
        if not blocks or any(self._survey.runs[self.module.get_submodule(block)] != 1 for block in blocks):
            return None
        with recorded(self.module, blocks) as found:
            self._forward(tokens)
        return found[0]

    def logits(self, tokens: Tokens, edits: Mapping[str, Edit] | None = None, *, after: Prefix | None = None) -> Logits:
        """Return the model's logits, with the activations at some sites replaced.

        Gradients are recorded only if an edit returns a tensor that requires them.

        Args:
            tokens: Rows of token ids, on any device.
            edits: For each site a function that takes the activation [sequences, positions, d_in] and returns its
                replacement with the same shape. The replacement is cast to the model's dtype and device. The function
                must not change its argument in place.
            after: The `prefix` of the same tokens, whose blocks need not run again; all edited sites come after it.

        Returns:
            Logits over the vocabulary for the token that follows each position.

        Raises:
            ValueError: same as for `activations`; or an edit returns another shape or not floating point.
        """
        edits = edits or {}
        start = replayed(self.module, after) if after else nullcontext()
        with start, spliced(self.module, self._places(edits), edits, _shape(tokens)):
            return self._forward(tokens)

    @cached_property
    def _survey(self) -> Survey:
        return survey(self.module, self._forward, self._few_tokens())

    def _few_tokens(self) -> Tokens:
        """Return two rows that differ in the last token, with ids from the middle, which are not special tokens."""
        tokens = torch.full((2, min(3, self.context)), self.vocab_size // 2, device="cpu")
        tokens[1, -1] = self.vocab_size // 3
        return tokens

    @torch.no_grad()
    def _has_effect(self, site: str) -> bool:
        tokens = self._few_tokens()
        changed = self.logits(tokens, {site: lambda x: x.roll(1, dims=-1) + 1})
        return not torch.equal(changed, self.logits(tokens))

    def _places(self, sites: Sequence[str] | Mapping[str, Edit]) -> dict[str, Site]:
        for site in sites:
            self.d_in(site)
        return {site: find_site(site, self.sites, self.module) for site in sites}

    def _forward(self, tokens: Tokens) -> Logits:
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"The rows have {tokens.shape[1]} tokens, but {self.name!r} takes at most {self.context}. "
                f"Tokenise with a context of {self.context} or less."
            )
        if tokens.numel() == 0 or not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise ValueError(
                f"{self.name!r} takes token ids from 0 to {self.vocab_size - 1}, "
                + (f"got {int(tokens.min())} to {int(tokens.max())}." if tokens.numel() else "got no tokens.")
                + " Tokenise with the model's own tokenizer."
            )
        return self.module(input_ids=tokens.to(self.device), use_cache=False).logits


def _shape(tokens: Tokens) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1]


def _context(text_config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    limits = [getattr(text_config, key, None) for key in _CONTEXT_KEYS]
    return next((int(limit) for limit in limits if limit), int(tokenizer.model_max_length))
