"""What every library is given: a model on disk, the place in it, a text, and the sizes of the run."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from penstock.language_models.model_source import EMBEDDED_FOLDER
from penstock.language_models.texts import documents
from penstock.language_models.tokens import tokenise

CONTEXT = 256
"""Tokens in a row, BOS included: the embedded model's maximum."""

MODEL_ROWS = 8
"""Rows in one forward pass of the language model; faster on a CPU than the libraries' own 32."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One comparison: a Gated SAE on one site of one model."""

    name: str
    model: str
    """`embedded` or `gpt2`."""
    module: str
    """Path of the module whose output is reconstructed."""
    d_in: int
    d_sae: int
    batch_size: int
    """Tokens per step."""
    tokens: int
    """Activations trained on."""
    buffer_tokens: int
    """Activations in the shuffle buffer; refilled when half of them are used."""
    target_l0: float
    """For penstock."""
    peer_coef: float
    """For the peers, whose activations have mean squared norm d_in: about the same L0 after a long run."""
    peer_lr: float = 3e-3

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.tokens // self.batch_size


def workloads(embedded_tokens: int, gpt2_tokens: int) -> list[Workload]:
    """Every comparison, with the tokens to train on for each model."""
    found = [
        Workload(
            name=f"embedded, d_sae {d_sae}, batch {batch_size}",
            model="embedded",
            module="model.layers.2",
            d_in=192,
            d_sae=d_sae,
            batch_size=batch_size,
            tokens=embedded_tokens // batch_size * batch_size,
            buffer_tokens=min(2**16, embedded_tokens // 4),
            target_l0=16,
            peer_coef=3.0,
        )
        for d_sae in (1024, 4096)
        for batch_size in (4096, 512)
    ]
    gpt2 = Workload(
        name="gpt2, d_sae 16384, batch 4096",
        model="gpt2",
        module="transformer.h.6",
        d_in=768,
        d_sae=16384,
        batch_size=4096,
        tokens=gpt2_tokens // 4096 * 4096,
        buffer_tokens=2**14,
        target_l0=64,
        peer_coef=5.0,
    )
    return [*found, gpt2]


def model_folder(model: str, cache: Path) -> Path:
    """Where the model lies; the GPT-2-shaped one is written below `cache` first.

    It has GPT-2 small's shape and random weights, and reads with the embedded model's tokenizer: what it computes is
    worth nothing, what it costs is the real thing.
    """
    if model == "embedded":
        return EMBEDDED_FOLDER
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = cache / "gpt2_small_random"
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
        GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def enough_documents(tokenizer_folder: Path, num_tokens: int) -> list[str]:
    """The first documents of the train split that hold `num_tokens`, or all: the text both peers are handed."""
    tokenizer = _tokenizer(tokenizer_folder)
    texts, held = [], 0
    for document in documents("embedded", split="train"):
        texts.append(document.text)
        held += len(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
        if held >= num_tokens:
            break
    return texts


def packed_texts(tokenizer_folder: Path, num_tokens: int) -> list[str]:
    """The packed rows of the same documents turned back into text, for a library that cuts each text at the context."""
    tokenizer = _tokenizer(tokenizer_folder)
    rows = tokenise(documents("embedded", split="train"), tokenizer, context=CONTEXT, packing="packed")
    return [tokenizer.decode(row.tokens) for row in islice(rows, num_tokens // CONTEXT + 1)]


def _tokenizer(folder: Path):  # noqa: ANN202, a transformers tokenizer, typed by that library
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
