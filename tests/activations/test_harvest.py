"""Rows of texts and the activations made of them, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from penstock.activations.harvest import Text, TrainingStream, fill_cache, masked_acts
from penstock.language_models.loading import LanguageModel
from penstock.language_models.texts import documents
from penstock.language_models.tokens import TokenRows

BOS, PAD = 1, 0
SITES = ("resid_post.0", "resid_post.1")

MakeText = Callable[..., Text]


@pytest.fixture
def text(tiny_lm: LanguageModel, corpus: Path) -> MakeText:
    def make(source: Path | None = None, context: int = 16, packing: str = "packed") -> Text:
        return Text(
            model=tiny_lm,
            source=str(source or corpus),
            text_field="text",
            context=context,
            packing=packing,  # type: ignore[arg-type]
        )

    return make


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def distinct(length: int, count: int) -> list[str]:
    """Texts of random letters, so that a hash sends about a tenth of them to the held-out split."""
    letters = torch.randint(97, 123, (count, length), generator=torch.Generator().manual_seed(0))
    return ["".join(map(chr, row)) for row in letters.tolist()]


def test_the_activations_are_the_models_at_the_positions_that_count(tiny_lm: LanguageModel) -> None:
    tokens = torch.tensor([[BOS, 5, 6, 7], [BOS, 8, PAD, PAD]])
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    acts = masked_acts(tiny_lm, TokenRows(tokens, mask), SITES, "cpu")
    whole = tiny_lm.activations(tokens, SITES)
    for site in SITES:
        expected = torch.stack([whole[site][0, 1], whole[site][0, 2], whole[site][0, 3], whole[site][1, 1]])
        assert torch.equal(acts[site], expected)


@pytest.mark.parametrize("packing", ["packed", "truncated"])
def test_bos_and_padding_are_left_out_of_the_stream(text: MakeText, packing: str) -> None:
    read = text(packing=packing)
    stream = TrainingStream(text=read, sites=SITES, batch_rows=8, device="cpu")
    harvested = sum(len(harvest.acts[SITES[0]]) for harvest in stream(0))
    letters = [len(document.text) for document in documents(read.source, split="train")]
    kept = letters if packing == "packed" else [min(length, 15) for length in letters]
    assert harvested == sum(kept)


def test_a_stream_started_at_a_row_goes_on_with_the_same_activations(text: MakeText) -> None:
    stream = TrainingStream(text=text(context=32), sites=SITES, batch_rows=16, device="cpu")
    harvests = list(stream(0))
    assert [harvest.next_row for harvest in harvests[:3]] == [16, 32, 48]
    again = list(stream(harvests[2].next_row))
    assert len(again) == len(harvests) - 3
    for late, early in zip(again, harvests[3:], strict=True):
        assert late.next_row == early.next_row
        for site in SITES:
            assert torch.equal(late.acts[site], early.acts[site])


def test_a_cache_holds_the_first_activations_of_the_stream(text: MakeText) -> None:
    stream = TrainingStream(text=text(context=32), sites=SITES, batch_rows=16, device="cpu")
    cache = fill_cache(stream, 100, seed=0)
    whole = torch.cat([harvest.acts[SITES[1]] for harvest in stream(0)])
    assert torch.equal(cache.acts[SITES[1]], whole[:100])
    assert fill_cache(stream, 10**9, seed=0).num_tokens == len(whole)


def test_held_out_rows_follow_the_seed_and_share_no_document_with_training(text: MakeText) -> None:
    read = text(context=32)
    rows = read.held_out(200, seed=0)
    assert 200 <= int(rows.mask.sum()) < 200 + 31
    assert torch.equal(rows.tokens, read.held_out(200, seed=0).tokens)
    assert not torch.equal(rows.tokens, read.held_out(200, seed=1).tokens)

    train = "".join(document.text for document in documents(read.source, split="train"))
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for row, mask in zip(rows.tokens, rows.mask, strict=True):
        run = "".join(letters[token - 3] if counts else " " for token, counts in zip(row, mask, strict=True))
        for part in run.split():
            # Seven random letters are as good as a fingerprint.
            assert len(part) < 7 or part not in train


def test_held_out_takes_all_there_is_where_there_is_less(text: MakeText) -> None:
    read = text()
    rows = read.held_out(10**6, seed=0)
    assert int(rows.mask.sum()) == sum(len(d.text) for d in documents(read.source, split="held_out"))


def test_held_out_reaches_its_size_with_documents_much_shorter_than_a_row(text: MakeText, tmp_path: Path) -> None:
    short = write_corpus(tmp_path / "short.jsonl", distinct(length=3, count=2000))
    rows = text(short, context=200, packing="truncated").held_out(300, seed=0)
    assert int(rows.mask.sum()) == 300


def test_a_fair_text_passes_the_check(text: MakeText) -> None:
    text().check()
    text(packing="truncated").check()


def test_documents_of_one_token_fail_before_the_training(text: MakeText, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "single.jsonl", list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    with pytest.raises(ValueError, match="one token each.*nothing to predict.*longer documents"):
        text(path).check()


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_split_without_documents_fails_before_the_training(text: MakeText, tmp_path: Path, split: str) -> None:
    all_texts = write_corpus(tmp_path / "all.jsonl", distinct(length=30, count=60))
    other = "held_out" if split == "train" else "train"
    only = [document.text for document in documents(all_texts, split=other)]
    path = write_corpus(tmp_path / "one_split.jsonl", only)
    with pytest.raises(ValueError, match=f"No documents in split '{split}'"):
        text(path).check()


def test_an_empty_cache_is_an_error(text: MakeText, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "empty.jsonl", [""])
    stream = TrainingStream(text=text(path), sites=SITES, batch_rows=4, device="cpu")
    with pytest.raises(ValueError, match="No documents in split 'train'"):
        fill_cache(stream, 100, seed=0)
